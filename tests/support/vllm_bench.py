"""The engine ``vllm`` over a tiny model, in a child process as a worker has it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from premoe_runtime.engines.child.ranked import Member
from premoe_runtime.engines.vllm import compat
from premoe_runtime.engines.vllm.arguments import ranks_in
from premoe_runtime.engines.vllm.engine import ENVIRONMENT, VllmEngine
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.slot_shape import SlotShape
from support.engines import Bench, Reports, child_engine, ground, ranked_engine, running, split_options
from support.sources import MemorySource

HEADS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"head_dim": 32},
    "mixtral": {"head_dim": 32},
    "qwen2_moe": {"num_attention_heads": 2},
    "olmoe": {"num_attention_heads": 2, "num_key_value_heads": 2},
    "granitemoe": {"num_attention_heads": 2},
    "glm4_moe": {"head_dim": 32},
}
"""vLLM's CPU attention knows heads of 32 numbers and more."""
PRELOAD = "premoe_runtime.engines.vllm.core"
"""Importing vLLM takes most of a child's start."""


def need_vllm() -> None:
    """Skip the test where vLLM is not installed."""
    if compat.version() is None:
        pytest.skip("vLLM is not installed here; `make test-vllm` makes an environment with it")


class Benches(ExitStack):
    """Engines by their options, for many tests, which leave them idle; the last few that were used are kept.

    ``folder`` makes a new one.
    """

    def __init__(self, folder: Callable[[], Path], most: int = 3) -> None:
        super().__init__()
        self._folder, self._most = folder, most
        self._kept: OrderedDict[str, tuple[Bench, ExitStack]] = OrderedDict()

    def open(self, **options: Any) -> Bench:
        key = repr(sorted(options.items()))
        if key in self._kept and self._kept[key][0].reports.ended:
            self._kept.pop(key)[1].close()
        if key not in self._kept:
            while len(self._kept) >= self._most:
                self._kept.popitem(last=False)[1][1].close()
            stack = self.enter_context(ExitStack())
            self._kept[key] = stack.enter_context(vllm_bench(self._folder(), **options)), stack
        self._kept.move_to_end(key)
        return self._kept[key][0]


@pytest.fixture(scope="module")
def vllm_benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Benches]:
    """Of one test module."""
    with Benches(lambda: tmp_path_factory.mktemp("vllm")) as benches:
        yield benches


@contextmanager
def vllm_bench(folder: Path, **options: Any) -> Iterator[Bench]:
    of_ground, of_engine = split_options(options)
    family = of_ground.get("family", "qwen3_moe")
    overrides = {**HEADS.get(family, {}), **of_ground.pop("overrides", {})}
    made = ground(folder, overrides=overrides, **of_ground)
    engine = vllm_child(made.folder, made.shape, made.arena, **of_engine)
    bench = Bench(engine, made.arena, made.source, made.folder, made.kept, Reports())
    with running(bench):
        yield bench


def vllm_child(checkpoint: Path | str, shape: SlotShape, arena: HostArena, **options: Any) -> Any:
    """``checkpoint``: its folder, or the URL of a pack."""
    os.environ.update(ENVIRONMENT)
    if options.pop("parked_bytes", None) == 0:
        options["parked"] = False
    build = partial(_build, checkpoint, shape, arena, options)
    if (ranks := ranks_in(options.get("given") or {})) > 1:
        return ranked_engine(lambda member: partial(build, member), ranks, preload=[PRELOAD])
    return child_engine(build, preload=[PRELOAD])


@contextmanager
def _build(
    checkpoint: Path | str, shape: SlotShape, arena: HostArena, options: dict[str, Any], member: Member | None = None
) -> Iterator[VllmEngine]:
    torch.set_num_threads(1)
    source = open_pack(checkpoint) if isinstance(checkpoint, str) else MemorySource(checkpoint)
    yield VllmEngine(source, shape, arena, crew=None if member is None else member.crew(), **options)
