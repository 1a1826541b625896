"""The one registry of methods."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from premoe_runtime.compress.method import Method
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


def find(name: str) -> Method:
    """The method of this name. Raises InvalidInput (METHOD_UNKNOWN)."""
    if name in METHODS:
        return METHODS[name]
    near = get_close_matches(name, METHODS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InvalidInput(
        f"method {name[:80]!r} is not known; {hint}`premoe compress list` lists them", reason="METHOD_UNKNOWN"
    )
