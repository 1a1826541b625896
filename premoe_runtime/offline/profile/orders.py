"""The two orders in which batches and layers are run: a model in memory batch by batch, a larger one layer by layer.

Both take every layer through the same steps with the same bytes, so that profiles do not differ in a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from premoe_runtime.engines.hf.blocks import BlockModel
from premoe_runtime.engines.hf.calls import layer_calls
from premoe_runtime.offline.profile.gradient import Objective
from premoe_runtime.offline.profile.run import Run
from premoe_runtime.offline.profile.spool import Spool, open_spool
from premoe_runtime.offline.profile.unfinished import Keeper

Advance = Callable[[float], None]


def by_batches(run: Run, keeper: Keeper, advance: Advance) -> None:
    """Every batch through all layers and back; a step is a batch. ``advance`` is told of examples."""
    start = keeper.stopped.done
    run.resume(keeper.stopped.sums)
    advance(sum(map(len, run.batches[:start])))
    for number in range(start, len(run.batches)):
        batch = run.batch(number)
        calls = layer_calls(run.model.model, batch.token_ids)
        hidden, inputs = calls[0].embedded, list[torch.Tensor]()
        for call in calls:
            if run.objectives:
                inputs.append(hidden)
            hidden = run.forward(call, hidden, batch)
        for objective in run.objectives:
            gradient = run.top(hidden, batch, objective)
            for call, before in zip(reversed(calls), reversed(inputs), strict=True):
                gradient = run.backward(call, before, gradient, batch, objective)
        keeper.save(number + 1, run.sums())
        advance(len(batch.indices))


def by_layers(
    run: Run, model: BlockModel, folder: Path, keeper: Keeper, advance: Advance, stage: Callable[[str], None]
) -> None:
    """All batches through a layer, and at the end back through it; a step is a layer, forward or back.

    Layer inputs lie in ``folder`` meanwhile. ``advance`` is told of parts of examples, ``stage`` of the layer. Raises
    what ``open_spool`` raises.
    """
    steps = _steps(run, model.num_blocks)
    with open_spool(folder, keeper.settings, _spool_bytes(run, model)) as spool:
        if not all(spool.has(name) for name in _needed(run, steps[keeper.stopped.done :])):
            keeper.start_anew(f"{folder} lacks what a stopped run left there")
        start = keeper.stopped.done
        run.resume(keeper.stopped.sums)
        advance(sum(map(len, run.batches)) * start / len(steps))
        for number in range(start, len(steps)):
            step = steps[number]
            stage(f"layer {step.block + 1} of {model.num_blocks}" + ", backward" * (step.objective is not None))
            model.load(step.block)
            for batch, indices in enumerate(run.batches):
                _one(run, spool, step, batch)
                advance(len(indices) / len(steps))
            keeper.save(number + 1, run.sums())
            later = set(_needed(run, steps[number + 1 :]))
            spool.drop(*(name for name in {*_read(run, step), *_written(run, step)} if name not in later))
        spool.clear()


@dataclass(frozen=True, slots=True)
class _Step:
    """All batches through one block: forward, or back for an objective. ``last``: no block comes behind it."""

    block: int
    last: bool
    objective: Objective | None = None


def _steps(run: Run, blocks: int) -> list[_Step]:
    forward = [_Step(block, block + 1 == blocks) for block in range(blocks)]
    return [
        *forward,
        *(_Step(step.block, step.last, objective) for objective in run.objectives for step in reversed(forward)),
    ]


def _one(run: Run, spool: Spool, step: _Step, number: int) -> None:
    batch, block = run.batch(number), step.block
    device = batch.token_ids.device
    call = layer_calls(run.model.model, batch.token_ids)[block]

    def kept(kind: str, block: int) -> torch.Tensor:
        return spool.read(_file(kind, block, number)).to(device)

    hidden = kept("input", block) if block else call.embedded
    if step.objective is None:
        output = run.forward(call, hidden, batch)
        if run.objectives or not step.last:
            spool.write(_file("input", block + 1, number), output)
        return
    if step.last:
        gradient = run.top(kept("input", block + 1), batch, step.objective)
    else:
        gradient = kept("gradient", block + 1)
    gradient = run.backward(call, hidden, gradient, batch, step.objective)
    if block:
        spool.write(_file("gradient", block, number), gradient)


def _spool_bytes(run: Run, model: BlockModel) -> int:
    """The most that lies in the spool at a time: the inputs of all layers but the first, an output, a gradient."""
    padded = sum(len(indices) * max(map(run.length, indices)) for indices in run.batches)
    each: int = padded * model.manifest.hidden_size * model.model.dtype.itemsize
    return each * (model.num_blocks + 1 if run.objectives else 2)


def _needed(run: Run, steps: Sequence[_Step]) -> Iterator[str]:
    """Files that these steps, the last ones of a run, read and do not write themselves."""
    written: set[str] = set()
    for step in steps:
        yield from (name for name in _read(run, step) if name not in written)
        written.update(_written(run, step))


def _read(run: Run, step: _Step) -> Iterator[str]:
    if step.block:
        yield from _files(run, "input", step.block)
    if step.objective is not None:
        yield from _files(run, "input" if step.last else "gradient", step.block + 1)


def _written(run: Run, step: _Step) -> Iterator[str]:
    if step.objective is None and (run.objectives or not step.last):
        yield from _files(run, "input", step.block + 1)
    elif step.objective is not None and step.block:
        yield from _files(run, "gradient", step.block)


def _files(run: Run, kind: str, block: int) -> list[str]:
    return [_file(kind, block, number) for number in range(len(run.batches))]


def _file(kind: str, block: int, batch: int) -> str:
    """What lies at a block's input; that of the block behind the last is the last one's output."""
    return f"{kind}-{block}-{batch}"
