"""A store with a tiny packed model and a live pattern set, and meshes over it, for tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from premoe_local.mesh import Mesh, running
from premoe_local.mesh_options import MeshOptions

from premoe_runtime.offline.calibration import Example, Message
from premoe_runtime.offline.patterns.build import BuildOptions, build_set
from premoe_runtime.offline.patterns.library import publish
from premoe_runtime.offline.profile.measure import load_full_model, measure_profile
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store
from support.tiny import prune, tiny_checkpoint

ALPHABETS = {"digits": "0123456789+-=", "capitals": "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "vowels": "aeiou "}
"""Tasks of the random model: what they are made of is all that tells them apart."""
UNKNOWN = "z" * 24
BUDGET = "2/4"


def prompts(task: str, count: int, seed: int = 0) -> list[str]:
    """Random prompts of a task, 24 characters each."""
    draw = random.Random(f"{task} {seed}")
    return ["".join(draw.choices(ALPHABETS[task], k=24)) for _ in range(count)]


def prepare_store(folder: Path, layer_experts: Sequence[int] = (), *, template: str = "", **overrides: Any) -> str:
    """Pack a tiny random Qwen3-MoE, profile three tasks, publish a live set. Returns the store's URL.

    ``layer_experts``: of its two layers, where they are pruned to fewer than 16. ``template``: of its chats, instead of
    the usual one. ``overrides``: of its configuration.
    """
    url = f"file://{folder / 'store'}"
    store = open_store(url)
    checkpoint = tiny_checkpoint(folder, **overrides)
    if template:
        (checkpoint / "chat_template.jinja").write_text(template)
    write_pack(open_source(str(prune(checkpoint, layer_experts) if layer_experts else checkpoint)), store)
    model = load_full_model(open_pack(url))
    profiles = []
    for task in ALPHABETS:
        examples = [Example((Message("user", prompt),), "yes", line) for line, prompt in enumerate(prompts(task, 40))]
        profiles.append(measure_profile(model, examples, task=task))
    publish(store, build_set(profiles, BuildOptions(quantile=0.9)), live=True)
    return url


@contextmanager
def mesh_over(
    store_url: str, *, log: Callable[[str, str], None] = lambda name, line: None, **changes: object
) -> Iterator[Mesh]:
    """A mesh of one worker at `BUDGET`; ``changes`` are fields of `MeshOptions`."""
    options = MeshOptions(model=store_url, budget=BUDGET, threads=1, context_length=256, metrics=True)
    with running(replace(options, **changes), log=log) as mesh:  # type: ignore[arg-type]
        yield mesh
