"""What the last layer gives where test answers are predicted: of a model in memory, or of one read layer by layer."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from premoe_runtime.engines.hf.blocks import BlockModel
from premoe_runtime.engines.hf.calls import layer_calls
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.arrays import Mask
from premoe_runtime.offline.batches import Batch
from premoe_runtime.offline.profile.spool import Spool, default_spool, open_spool

ROW = 1
"""Mask row of the experts under test; row 0 keeps every expert."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A task's test prompts under ``kept`` bool[L, E], ``active`` of them a token; None: the full model."""

    task: str
    kept: Mask | None
    active: int
    name: str = ""
    """For whoever watches."""


@dataclass(frozen=True, slots=True, eq=False)
class Asking:
    """A batch of test prompts; its answers are predicted at ``rows`` and ``places``, and should be ``wanted``, i64[A]
    each.
    """

    batch: Batch
    rows: Tensor
    places: Tensor
    wanted: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """``hidden`` [A, H] of the last layer; ``mass`` f32[B, T]: the share of the full router that was kept."""

    hidden: Tensor
    mass: Tensor


Outputs = Callable[[Asked], Iterator[Output]]
"""Batch by batch."""
Batches = Mapping[str, Sequence[Asking]]
"""By task."""


def in_memory(model: SlotModel, batches: Batches) -> Outputs:
    """Run when they are taken."""

    @torch.no_grad()
    def one(asking: Asking) -> Output:
        calls = layer_calls(model.model, asking.batch.token_ids)
        hidden = calls[0].embedded
        for call in calls:
            hidden = call(hidden)
        mass = model.retained_mass().view(asking.batch.valid.shape)
        return Output(hidden[asking.rows, asking.places], mass)

    def every(asked: Asked) -> Iterator[Output]:
        for asking in batches[asked.task]:
            _restrict(model, asked)
            yield one(asking)
        model.steps(0)

    return every


@contextmanager
def layer_by_layer(
    model: BlockModel,
    asked: Sequence[Asked],
    batches: Batches,
    spool: Path | None,
    advance: Callable[[float], None],
    stage: Callable[[str], None],
) -> Iterator[Outputs]:
    """All that is asked, taken through one layer after the other; layer inputs lie in ``spool`` meanwhile.

    ``advance`` is told of parts of prompts, ``stage`` of the layer. Raises what ``open_spool`` raises.
    """
    room = sum(_spool_bytes(model, batches[one.task]) for one in asked)
    # Nothing is kept for a later run, so whatever a killed one has left is another's.
    with open_spool(_folder(model, spool), uuid.uuid4().hex, room) as opened:
        try:
            run = _Streamed(model, opened, asked, batches)
            for block in range(model.num_blocks):
                stage(f"layer {block + 1} of {model.num_blocks}")
                run.through(block, advance)
            model.steps(0)
            yield run.outputs
        finally:
            opened.clear()


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What is asked in one pass over the layers, and the full model's run for each of its tasks."""

    asked: list[Asked]
    full: dict[str, Asked]

    @property
    def runs(self) -> list[Asked]:
        return [*self.full.values(), *(one for one in self.asked if one.kept is not None)]


def parts(model: BlockModel, asked: Sequence[Asked], batches: Batches, spool: Path | None) -> Iterator[Part]:
    """What is asked, cut to the disk: layer inputs of a part take half of what is free, unless it is a single one."""
    folder = _folder(model, spool)
    there = next(one for one in (folder, *folder.parents) if one.is_dir())
    room = shutil.disk_usage(there).free // 2
    part, taken = Part([], {}), 0
    for one in asked:
        size = _spool_bytes(model, batches[one.task])
        size *= (one.kept is not None) + (one.task not in part.full)
        if part.asked and taken + size > room:
            yield part
            part, taken = Part([], {}), 0
        part.full.setdefault(one.task, Asked(one.task, None, model.manifest.top_k))
        part.asked.append(one)
        taken += size
    if part.asked:
        yield part


class _Streamed:
    """One pass over the layers."""

    def __init__(self, model: BlockModel, spool: Spool, asked: Sequence[Asked], batches: Batches) -> None:
        self._model, self._spool, self._batches = model, spool, batches
        self._asked = {one: number for number, one in enumerate(asked)}
        self._masses = {
            (one, number): torch.zeros(asking.batch.valid.numel(), device=model.device)
            for one in asked
            for number, asking in enumerate(batches[one.task])
        }

    @torch.no_grad()
    def through(self, block: int, advance: Callable[[float], None]) -> None:
        """Everything through one layer; of the last one's output the places of answers are kept."""
        self._model.load(block)
        for task, batches in self._batches.items():
            asked = [one for one in self._asked if one.task == task]
            for number, asking in enumerate(batches if asked else ()):
                call = layer_calls(self._model.model, asking.batch.token_ids)[block]
                for one in asked:
                    name = self._file(one, number)
                    hidden = self._spool.read(name).to(self._model.device) if block else call.embedded
                    _restrict(self._model, one)
                    output = call(hidden)
                    last = block + 1 == self._model.num_blocks
                    self._spool.write(name, output[asking.rows, asking.places] if last else output)
                    self._masses[one, number] += self._model.block_mass(hidden.shape[:2].numel())
                    advance(len(asking.batch.indices) / self._model.num_blocks)

    def outputs(self, asked: Asked) -> Iterator[Output]:
        for number, asking in enumerate(self._batches[asked.task]):
            mass = self._masses[asked, number] / self._model.manifest.num_layers
            hidden = self._spool.read(self._file(asked, number)).to(self._model.device)
            yield Output(hidden, mass.view(asking.batch.valid.shape))

    def _file(self, asked: Asked, number: int) -> str:
        return f"{self._asked[asked]}-{number}"


def _restrict(model: SlotModel, asked: Asked) -> None:
    if asked.kept is not None:
        model.store.set_row(ROW, asked.kept)
    model.steps(0 if asked.kept is None else ROW, asked.active)


def _spool_bytes(model: BlockModel, batches: Sequence[Asking]) -> int:
    padded = sum(asking.batch.valid.numel() for asking in batches)
    each: int = padded * model.manifest.hidden_size * model.model.dtype.itemsize
    return each


def _folder(model: BlockModel, spool: Path | None) -> Path:
    return (spool or default_spool()) / f"{model.manifest.weights_id[:16]}-evaluation"
