"""A profile while it is measured: one layer and one batch at a time, in whatever order they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from premoe_runtime.engines.hf.calls import LayerCall
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.arrays import F32, F64
from premoe_runtime.formats.signature import mean_root, unit
from premoe_runtime.offline.batches import Batch, pad, plan_batches
from premoe_runtime.offline.profile.accumulator import PlaceOf, ProfileAccumulator
from premoe_runtime.offline.profile.gradient import Objective, answers_gradient, objectives, weigh_layer
from premoe_runtime.offline.profile.samples import Sample
from premoe_runtime.offline.profile.scores import sums_of
from premoe_runtime.offline.profile.state import ProfileState
from premoe_runtime.offline.profile.watch import place_of, watched


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What has been added up: ``means`` f64[N, len(layers), E] are the samples' signatures before they are scaled."""

    state: ProfileState
    means: F64


class Run:
    """Batches of samples, and the sums that layers add to. Each layer sees each batch once forward and once back."""

    def __init__(
        self,
        model: SlotModel,
        samples: Sequence[Sample],
        layers: tuple[int, ...],
        max_tokens: int,
        scores: Sequence[str],
        *,
        where: str,
    ) -> None:
        manifest = model.manifest
        self.model = model
        self._samples = samples
        self._layers = layers
        self._tokens = [sample.token_ids for sample in samples]
        self.batches = plan_batches([len(ids) for ids in self._tokens], max_tokens)
        shape = (manifest.num_layers, manifest.num_experts)
        self._accumulator = ProfileAccumulator(
            *shape,
            manifest.router,
            sums=sums_of(scores),
            vocabulary=model.model.get_input_embeddings().num_embeddings,
            device=str(model.device),
        )
        self.objectives = objectives(self._accumulator)
        self._before: ProfileState | None = None
        self._where = where
        self._means = np.zeros((len(samples), len(layers), manifest.num_experts))

    @property
    def tokens(self) -> int:
        """Of all samples, padding left out."""
        return sum(len(ids) for ids in self._tokens)

    def length(self, index: int) -> int:
        """Tokens of a sample."""
        return len(self._tokens[index])

    def resume(self, sums: Sums | None) -> None:
        """Add to what was measured before: the sums are exact, so nothing tells where it was cut."""
        if sums is None:
            return
        self._before, self._means = sums.state, sums.means.copy()

    def sums(self) -> Sums:
        state = self._accumulator.state()
        return Sums(state if self._before is None else self._before.followed_by(state), self._means)

    def signatures(self) -> F32:
        """f32[N, len(layers) * E], rows of unit length."""
        return np.stack([unit(means.ravel().astype(np.float32)) for means in self._means])

    def batch(self, number: int) -> Batch:
        return pad(self._tokens, self.batches[number], device=self.model.device)

    @torch.no_grad()
    def forward(self, call: LayerCall, hidden: Tensor, batch: Batch) -> Tensor:
        """A layer's output [B, T, H] for its input; its router's choices are added up."""

        def note(layer: int, logits: Tensor, _ids: Tensor, _weights: Tensor) -> None:
            if layer in self._layers:
                self._note(self._layers.index(layer), torch.softmax(logits, dim=-1), batch)

        with watched(self.model, call.layer, batch, self._accumulator, self._place(batch), also=note):
            return call(hidden)

    def top(self, output: Tensor, batch: Batch, objective: Objective) -> Tensor:
        """Gradient [B, T, H] of the objective at the last layer's output."""
        samples = [self._samples[index] for index in batch.indices]
        return answers_gradient(self.model, batch, samples, output, objective)

    def backward(self, call: LayerCall, hidden: Tensor, gradient: Tensor, batch: Batch, objective: Objective) -> Tensor:
        """Gradient at a layer's input from that at its output; what its experts are worth is added up."""
        place = self._place(batch)
        return weigh_layer(self.model, call, hidden, gradient, batch, self._accumulator, objective, place)

    def _place(self, batch: Batch) -> PlaceOf:
        return place_of(batch, [f"{self._where}:{self._samples[index].line}" for index in batch.indices])

    def _note(self, place: int, probabilities: Tensor, batch: Batch) -> None:
        rows = probabilities.view(*batch.token_ids.shape, -1).cpu().numpy()
        for row, index in zip(rows, batch.indices, strict=True):
            span = self._samples[index].prompt.span
            self._means[index, place] = mean_root(row[span.start : span.stop], self._means.shape[-1])
