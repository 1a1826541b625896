"""Whether a model is measured in memory or layer by layer: arithmetic over its manifest and its tensors' shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch

from premoe_runtime.engines.hf.blocks import block_of
from premoe_runtime.engines.hf.device import device_kind
from premoe_runtime.engines.hf.model import bare_model
from premoe_runtime.families.spec import MoeModel
from premoe_runtime.formats.errors import Exhausted
from premoe_runtime.formats.manifest import BlobLayout, Manifest
from premoe_runtime.offline.batches import MAX_TOKENS
from premoe_runtime.offline.profile.accumulator import WORD
from premoe_runtime.offline.profile.gradient import HEAD_TOKENS
from premoe_runtime.offline.profile.measure import arithmetic
from premoe_runtime.offline.profile.scores import USUAL, sums_of
from premoe_runtime.offline.profile.state import P_BINS
from premoe_runtime.offline.sizing.bill import PROCESS_BYTES
from premoe_runtime.residency.blob_fields import torch_dtype
from premoe_runtime.residency.host_tier import available_memory
from premoe_runtime.residency.plan import STAGING_BYTES
from premoe_runtime.residency.slot_layout import SlotLayout
from premoe_runtime.residency.source import ExpertSource
from premoe_runtime.storage import READ_PART_BYTES

Purpose = Literal["profiled", "evaluated"]


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of memory that measuring takes: with all layers there, or one at a time."""

    whole: int
    one_layer: int


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is measured, and a sentence why."""

    by_layers: bool
    why: str


def choose_way(
    source: ExpertSource,
    *,
    memory: int | None,
    device: str = "cpu",
    dtype: str = "auto",
    scores: Sequence[str] = USUAL,
    purpose: Purpose = "profiled",
) -> Way:
    """In memory where that fits, else layer by layer. ``scores``: those that profiles are measured for, if any.

    ``memory``: bytes that measuring may take of the device's memory (on the CPU: that the process may take); None:
    what is free. Raises Exhausted when not even one layer fits into what was given; what is free is an estimate, and
    refuses nothing.
    """
    needed = room(source, arithmetic(device, dtype), scores, judged=purpose == "evaluated")
    if memory is None:
        there, process, given = _free(device), 0, "are free"
    else:
        there, process, given = memory, PROCESS_BYTES if device_kind(device) == "cpu" else 0, "are given"
    whole, one_layer = needed.whole + process, needed.one_layer + process
    if whole <= there:
        return Way(
            by_layers=False, why=f"the model is {purpose} in memory: it takes {_mib(whole)}, {_mib(there)} {given}"
        )
    if memory is not None and one_layer > there:
        raise Exhausted(
            f"this model takes {_mib(one_layer)} even when it is {purpose} layer by layer, but {_mib(there)} {given}; "
            "give more memory",
            reason="MEMORY_TOO_SMALL",
        )
    return Way(
        by_layers=True,
        why=f"the model is {purpose} layer by layer, in {_mib(one_layer)}: as a whole it takes {_mib(whole)}, and "
        f"{_mib(there)} {given}",
    )


def room(source: ExpertSource, dtype: torch.dtype | None, scores: Sequence[str], *, judged: bool = False) -> Room:
    """What measuring takes beside the process itself; ``dtype`` None: the checkpoint's. ``judged``: answers are.

    Raises what ``bare_model`` raises.
    """
    manifest = source.manifest()
    _, facts = bare_model(source)
    held = dtype or torch_dtype(manifest.dtype)
    layout = SlotLayout.of(manifest, dtype)
    blob_bytes = layout.blob_bytes
    skeleton: Counter[int | None] = Counter()
    for tensor in facts.skeleton.values():
        skeleton[block_of(facts, tensor.memory)] += 0 if tensor.optional else prod(tensor.shape) * held.itemsize
    blobs = dict(zip(facts.blocks, (count * blob_bytes for count in manifest.layer_experts), strict=True))
    ends = skeleton.pop(None, 0)
    needs = {each.needs for each in sums_of(scores)}
    backward = bool(needs & {"gradient", "loss"})
    work = _workspace(layout.held, facts, held.itemsize, apart=bool(needs - {"router"}), head=backward or judged)
    work += _tables(manifest, facts, scores)
    work += max(STAGING_BYTES, 2 * blob_bytes) + 2 * max(READ_PART_BYTES, manifest.layout.blob_bytes)
    inputs = facts.num_blocks * MAX_TOKENS * manifest.hidden_size * held.itemsize * backward
    return Room(
        whole=ends + skeleton.total() + sum(blobs.values()) + inputs + work,
        one_layer=ends + max(skeleton[block] + blobs.get(block, 0) for block in range(facts.num_blocks)) + work,
    )


def _workspace(layout: BlobLayout, facts: MoeModel, item: int, *, apart: bool, head: bool) -> int:
    """Of one batch: hidden states in several copies, and each token's copies through its experts.

    Where experts answer one by one, and back, it is two and a half times as much (measured), or what the head takes.
    """
    hidden, rows = facts.hidden_size, max(field.shape[0] for field in layout.fields)
    token = item * (16 * hidden + facts.top_k * (3 * hidden + 2 * rows))
    experts = MAX_TOKENS * token * (5 if apart else 2) // 2
    return max(experts, 6 * HEAD_TOKENS * _vocabulary(facts) * 4) if head else experts


def _vocabulary(facts: MoeModel) -> int:
    return max(tensor.shape[0] for tensor in facts.skeleton.values() if block_of(facts, tensor.memory) is None)


def _tables(manifest: Manifest, facts: MoeModel, scores: Sequence[str]) -> int:
    """Of the sums themselves, on the device and in main memory: wide ones hold many numbers of every expert."""
    words = -(-_vocabulary(facts) // WORD)
    wide = {"vector": manifest.hidden_size, "pairs": manifest.num_experts, "binned": P_BINS, "words": words}
    rows = manifest.num_layers * manifest.num_experts
    return 2 * sum(8 * rows * wide.get(each.place, 1) for each in sums_of(scores))


def _free(device: str) -> int:
    if device_kind(device) == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return available_memory()


def _mib(num_bytes: int) -> str:
    return f"{-(-num_bytes >> 20)} MiB"
