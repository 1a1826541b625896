"""Looking at a model layer by layer: what routers and experts do on calibration text, forward, and backward if wanted.

One block's weights are in memory at a time; layer inputs lie in a spool. What was seen of a layer is kept in the work
folder once its last batch is through, so that a killed run goes on with the layer it was at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import blake3
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from premoe_runtime.compress.method import Job
from premoe_runtime.engines.hf.blocks import BlockModel
from premoe_runtime.engines.hf.calls import layer_calls
from premoe_runtime.engines.hf.experts import SlotExperts
from premoe_runtime.offline.batches import MAX_TOKENS, Batch, pad, plan_batches
from premoe_runtime.offline.profile.gradient import Objective, answers_gradient
from premoe_runtime.offline.profile.measure import load_blocks
from premoe_runtime.offline.profile.samples import Sample, encode_examples
from premoe_runtime.offline.profile.spool import Spool, open_spool
from premoe_runtime.offline.profile.watch import experts_of

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Seen:
    """One MoE layer on one batch, padding left out: T tokens, k experts each.

    logits [T, n], ids i64[T, k] (experts' numbers), weights [T, k]: the router's. inputs [T, H]: what the experts took;
    output [T, H]: their weighted sum. gradient [T, H]: of the objective at ``output``, in the backward look only.
    tasks i64[T]: number of each token's task, in the order of the data. lut i64[n + 1]: slots by expert.
    """

    layer: int
    logits: Tensor
    ids: Tensor
    weights: Tensor
    inputs: Tensor
    output: Tensor
    gradient: Tensor | None
    tasks: Tensor
    module: SlotExperts
    lut: Tensor

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """Which tokens chose an expert, i64[t], and with what weights [t]."""
        tokens, ranks = (self.ids == expert).nonzero(as_tuple=True)
        return tokens, self.weights[tokens, ranks]

    def activations(self, expert: int, inputs: Tensor) -> Tensor:
        """What an expert's neurons give for inputs [t, H], before ``down``: [t, I]."""
        slot, module = self.lut[expert], self.module
        hidden = inputs @ module.gate_up_proj[slot].T
        if module.has_bias:
            hidden = hidden + module.gate_up_proj_bias[slot]
        return module._apply_gate(hidden)

    def outputs(self, expert: int, inputs: Tensor) -> Tensor:
        """An expert's own output for inputs [t, H]: [t, H], not weighted."""
        slot, module = self.lut[expert], self.module
        found = self.activations(expert, inputs) @ module.down_proj[slot].T
        return found + module.down_proj_bias[slot] if module.has_bias else found

    def back(self, expert: int, gradients: Tensor) -> Tensor:
        """Gradients at an expert's own output [t, H], taken back to its neurons: [t, I]."""
        return gradients @ self.module.down_proj[self.lut[expert]]


class Watcher(Protocol):
    """Looks at one MoE layer; ``result`` is what is kept of it."""

    def see(self, seen: Seen) -> None: ...

    def result(self) -> Arrays: ...


class Looked:
    """What was kept of every layer, read from the work folder when asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def layer(self, layer: int) -> dict[str, npt.NDArray[Any]]:
        with np.load(self._path(layer), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}

    def has(self, layer: int) -> bool:
        return self._path(layer).is_file()

    def keep(self, layer: int, arrays: Arrays) -> None:
        path = self._path(layer)
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        unfinished.replace(path)

    def _path(self, layer: int) -> Path:
        return self._folder / f"layer-{layer:03d}.npz"


def look(
    job: Job,
    watcher: Callable[[int], Watcher],
    *,
    settings: str,
    objective: Objective | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Looked:
    """Take all of the job's data through the model; ``watcher(layer)`` makes the one that sees a MoE layer.

    ``objective``: then watchers see the way back, with gradients (``Seen.gradient``), last layer first; else forward.
    ``settings``: what else the result depends on: it is kept for the next run of the same. Raises InvalidInput: no
    example that fits; Exhausted: no room for the spool.
    """
    whole = json.dumps([settings, job.old.manifest.model_id, job.data_digests, objective, max_tokens])
    folder = job.work / blake3.blake3(whole.encode()).hexdigest()[:16]
    looked, blocks = Looked(folder), job.old.model.blocks
    folder.mkdir(parents=True, exist_ok=True)
    if all(looked.has(layer) for layer in range(len(blocks))):
        return looked
    model = load_blocks(job.old.reader, threads=job.threads, device=job.device)
    run = _Run(model, job, max_tokens)
    steps = model.num_blocks * (1 if objective is None else 2)
    job.report.stage("looking at the model", run.prompts * steps)
    with open_spool(folder / "spool", whole, run.spool_bytes(objective)) as spool:
        run.forward(spool, looked, None if objective else watcher, keep=objective is not None)
        if objective is not None:
            run.backward(spool, looked, watcher, objective)
        spool.clear()
    return looked


class _Run:
    """All batches through the blocks."""

    def __init__(self, model: BlockModel, job: Job, max_tokens: int) -> None:
        self._model, self._report = model, job.report
        self._samples: list[Sample] = []
        self._tasks: list[int] = []
        for number, (task, examples) in enumerate(job.data.items()):
            found = encode_examples(model, examples, answers="given", where=task, passed_over=job.report.note)
            self._samples += found
            self._tasks += [number] * len(found)
        self._tokens = [sample.token_ids for sample in self._samples]
        self._batches = plan_batches([len(ids) for ids in self._tokens], max_tokens)
        self._layer_of = {block: layer for layer, block in enumerate(job.old.model.blocks)}

    @property
    def prompts(self) -> int:
        return len(self._samples)

    def spool_bytes(self, objective: Objective | None) -> int:
        padded = sum(len(indices) * max(len(self._tokens[index]) for index in indices) for indices in self._batches)
        each: int = padded * self._model.manifest.hidden_size * self._model.model.dtype.itemsize
        return each * (2 if objective is None else self._model.num_blocks + 2)

    @torch.no_grad()
    def forward(self, spool: Spool, looked: Looked, watcher: Callable[[int], Watcher] | None, *, keep: bool) -> None:
        """Write every block's inputs; ``keep``: all of them stay for the way back."""
        for block in range(self._model.num_blocks):
            following = [f"input-{block + 1}-{number}" for number in range(len(self._batches))]
            layer = self._layer_of.get(block)
            seen_before = watcher is None or layer is None or looked.has(layer)
            if seen_before and all(map(spool.has, following)):
                self._report.advance(self.prompts)
                continue
            self._model.load(block)
            watching = watcher(layer) if watcher is not None and layer is not None and not looked.has(layer) else None
            for number, batch in enumerate(self._padded()):
                call = layer_calls(self._model.model, batch.token_ids)[block]
                hidden = self._input(spool, block, number, call.embedded)
                with self._observed(call.layer, batch, layer) as observed:
                    output = call(hidden)
                if watching is not None and layer is not None:
                    watching.see(observed.seen(layer, None))
                spool.write(following[number], output)
                self._report.advance(len(batch.indices))
            if watching is not None and layer is not None:
                looked.keep(layer, watching.result())
            if not keep and block:
                spool.drop(*(f"input-{block}-{number}" for number in range(len(self._batches))))

    def backward(self, spool: Spool, looked: Looked, watcher: Callable[[int], Watcher], objective: Objective) -> None:
        last = self._model.num_blocks - 1
        for block in range(last, -1, -1):
            layer = self._layer_of.get(block)
            before = [f"gradient-{block}-{number}" for number in range(len(self._batches))]
            if (layer is None or looked.has(layer)) and all(map(spool.has, before)):
                self._report.advance(self.prompts)
                continue
            self._model.load(block)
            watching = watcher(layer) if layer is not None and not looked.has(layer) else None
            for number, batch in enumerate(self._padded()):
                if block == last:
                    output = spool.read(f"input-{block + 1}-{number}").to(self._model.device)
                    samples = [self._samples[index] for index in batch.indices]
                    gradient = answers_gradient(self._model, batch, samples, output, objective)
                else:
                    gradient = spool.read(f"gradient-{block + 1}-{number}").to(self._model.device)
                call = layer_calls(self._model.model, batch.token_ids)[block]
                hidden = self._input(spool, block, number, call.embedded).detach().requires_grad_()
                with torch.enable_grad(), self._observed(call.layer, batch, layer) as observed:
                    output = call(hidden)
                if observed.output is None:
                    (back,) = torch.autograd.grad(output, hidden, gradient)
                else:
                    back, routed = torch.autograd.grad(output, (hidden, observed.output), gradient)
                    if watching is not None and layer is not None:
                        watching.see(observed.seen(layer, routed))
                spool.write(before[number], back)
                self._report.advance(len(batch.indices))
            if watching is not None and layer is not None:
                looked.keep(layer, watching.result())
            if block < last:
                spool.drop(*(f"gradient-{block + 1}-{number}" for number in range(len(self._batches))))

    def _padded(self) -> Iterator[Batch]:
        for indices in self._batches:
            yield pad(self._tokens, indices, device=self._model.device)

    def _input(self, spool: Spool, block: int, number: int, embedded: Tensor) -> Tensor:
        return spool.read(f"input-{block}-{number}").to(self._model.device) if block else embedded

    @contextmanager
    def _observed(self, block: nn.Module, batch: Batch, layer: int | None) -> Iterator[_Observed]:
        tasks = torch.tensor([self._tasks[index] for index in batch.indices], device=batch.valid.device)
        observed = _Observed(batch, tasks, self._model.store.lut[layer or 0])
        experts = experts_of(block)
        self._model.record(observed.routed)
        if experts is not None:
            observed.watch(experts)
        try:
            yield observed
        finally:
            self._model.record(None)
            if experts is not None:
                del experts.forward


class _Observed:
    """What one layer's router and experts did."""

    def __init__(self, batch: Batch, tasks: Tensor, lut: Tensor) -> None:
        self._batch, self._tasks, self._lut = batch, tasks, lut
        self.output: Tensor | None = None

    def routed(self, _layer: int, logits: Tensor, ids: Tensor, weights: Tensor) -> None:
        self._logits, self._ids, self._weights = logits, ids, weights

    def watch(self, experts: SlotExperts) -> None:
        def forward(hidden: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
            self._module, self._inputs = experts, hidden
            self.output = SlotExperts.forward(experts, hidden, slots, weights)
            return self.output

        experts.forward = forward  # type: ignore[method-assign,assignment]

    def seen(self, layer: int, gradient: Tensor | None) -> Seen:
        assert self.output is not None, "a MoE layer has experts"
        valid = self._batch.valid.flatten()
        tasks = self._tasks[:, None].expand(self._batch.valid.shape).flatten()

        def some(tensor: Tensor) -> Tensor:
            return tensor.detach().reshape(len(valid), -1)[valid]

        return Seen(
            layer,
            some(self._logits),
            some(self._ids),
            some(self._weights),
            some(self._inputs),
            some(self.output),
            None if gradient is None else some(gradient),
            tasks[valid],
            self._module,
            self._lut,
        )
