"""The one registry of methods."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from premoe_runtime.compress.method import Elsewhere, Method
from premoe_runtime.compress.methods import (
    expert_merging,
    grape,
    heapr,
    light_peft,
    mc_suite,
    random,
    select,
    shape,
    slim,
    uncurl,
)
from premoe_runtime.formats.errors import InvalidInput

METHODS: Mapping[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (select, heapr, uncurl, grape, slim, mc_suite, light_peft, shape, expert_merging, random)
}


ELSEWHERE: Mapping[str, Elsewhere] = {
    one.name: one
    for one in (
        Elsewhere(
            name="upcycle",
            title="a dense checkpoint with experts in place of its MLPs",
            source="Dirichlet-prior shaping, arXiv 2510.01185",
            changes=("count", "router"),
            needs=("a dense checkpoint",),
            cost="a copy, tensor by tensor; with --steps training, the whole model in memory",
            loads="hf, vLLM",
            use="premoe compress upcycle DENSE --experts N --to FOLDER",
        ),
        Elsewhere(
            name="des",
            title="several answers with different numbers of active experts, of which a verifier chooses",
            source="DES, arXiv 2509.22572",
            changes=("nothing",),
            needs=("a verifier, or votes",),
            cost="n answers a request",
            loads="hf; vLLM with one number of experts",
            use="requests with n and premoe.search (docs/api.md)",
        ),
        Elsewhere(
            name="monet",
            title="the own experts of a task masked out",
            source="Monet, arXiv 2412.04139",
            changes=("nothing",),
            needs=("a pattern set",),
            cost="none",
            loads="hf, vLLM",
            use="requests or a PrunedModel with deny (docs/deny.md); premoe eval ablate",
        ),
    )
}
"""Neighbours that make no pack of a pack, by their names."""


def find(name: str) -> Method:
    """The method of this name. Raises InvalidInput (METHOD_UNKNOWN, METHOD_ELSEWHERE)."""
    if name in METHODS:
        return METHODS[name]
    if name in ELSEWHERE:
        raise InvalidInput(f"{name} makes no pack of a pack: {ELSEWHERE[name].use}", reason="METHOD_ELSEWHERE")
    near = get_close_matches(name, METHODS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InvalidInput(
        f"method {name[:80]!r} is not known; {hint}`premoe compress list` lists them", reason="METHOD_UNKNOWN"
    )
