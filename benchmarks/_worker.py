"""A serving front before vLLM over slots, which runs in a process of its own, as a worker has both."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import torch
from throughput import EXPERTS, LAYERS, Served, write_checkpoint

from premoe_runtime.engines.child.engine import ChildEngine
from premoe_runtime.engines.vllm.engine import ENVIRONMENT, VllmEngine
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.serving.front import Front
from premoe_runtime.serving.requests import KeptPattern
from premoe_runtime.storage import open_store

CONTEXT, STEP_TOKENS = 1024, 1024


def set_up(threads: int) -> None:
    """Of this process and its children. Raises ClickException without vLLM."""
    if find_spec("vllm") is None:
        raise click.ClickException("vLLM is not installed here; `make` runs this where it is, see docs/benchmarks.md")
    os.environ.update(ENVIRONMENT, VLLM_LOGGING_LEVEL="ERROR", OMP_NUM_THREADS=str(threads))
    # As vLLM runs where nobody sets it: a thread that waits spins for a moment, then sleeps.
    os.environ.pop("OMP_WAIT_POLICY", None)


@contextmanager
def pack_of(dtype: str) -> Iterator[str]:
    """The random model of ``throughput``, packed."""
    with tempfile.TemporaryDirectory(prefix="premoe-bench-") as name:
        folder = Path(name)
        write_checkpoint(folder / "checkpoint", dtype)
        yield write_pack(open_source(str(folder / "checkpoint")), open_store((folder / "store").as_uri())).url


class Worker(Served):
    """``pid``: of the process in which vLLM runs."""

    pid = 0


@contextmanager
def worker(pack: str, *, slots: int, sequences: int, threads: int, host_blobs: int) -> Iterator[Worker]:
    """``slots`` a layer, which hold nothing yet; ``sequences``: at once; ``threads``: of vLLM; ``host_blobs``: experts
    that host memory holds.
    """
    source = open_pack(pack)
    shape = SlotShape.as_stored(source.manifest(), slots=slots)
    arena = HostArena(shape.blob_bytes, host_blobs * shape.blob_bytes)
    engine = ChildEngine(partial(_build, pack, shape, arena, sequences, threads))
    front = Front(engine, shape, arena, source)
    try:
        made = Worker(front, shape)
        made.pid = engine.pid
        yield made
    finally:
        front.close()


@contextmanager
def _build(pack: str, shape: SlotShape, arena: HostArena, sequences: int, threads: int) -> Iterator[VllmEngine]:
    """In the child."""
    torch.set_num_threads(threads)
    yield VllmEngine(
        open_pack(pack), shape, arena, max_sequences=sequences, context=CONTEXT, prefill_tokens=STEP_TOKENS
    )


def part(index: int, experts: int) -> KeptPattern:
    """Keeps ``experts`` of every layer, other ones than any other ``index``; from ``EXPERTS`` on it starts again."""
    kept = np.zeros((LAYERS, EXPERTS), dtype=np.bool_)
    kept[:, (index * experts + np.arange(experts)) % EXPERTS] = True
    return KeptPattern(f"{experts} from {index}", kept)
