"""How much the outputs of a layer's experts differ on the same inputs, whatever the router chose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from premoe_runtime.compress.look import Arrays, Seen, look
from premoe_runtime.compress.method import Job
from premoe_runtime.compress.use import Use
from premoe_runtime.formats.arrays import F64

Likeness = Literal["cka", "mse"]
PART = 32
"""Tokens whose outputs of all experts are in memory at once."""
TOKENS = 512
"""Inputs of a layer that its experts are compared on."""


def differences(job: Job, likeness: Likeness = "mse", tokens: int = TOKENS) -> tuple[list[F64], list[F64]]:
    """Of every layer how much its experts' outputs differ, f64[E, E], and how much they are used, f64[E]."""
    experts, tasks = job.old.manifest.layer_experts, len(job.data)
    looked = look(
        job,
        lambda layer: Differences(experts[layer], tasks, likeness, tokens),
        settings=f"differences {likeness} {tokens}",
    )
    layers = [looked.layer(layer) for layer in range(len(experts))]
    apart, use = ([np.asarray(layer[name], np.float64) for layer in layers] for name in ("apart", "use"))
    return apart, use


class Differences:
    """Of one layer: ``apart`` f64[E, E], ``use`` f64[E]: the router's weights on experts, the mean over tasks.

    Outputs are those of all E experts for up to ``most`` of the layer's inputs, evenly spread over the data.
    """

    def __init__(self, experts: int, tasks: int, likeness: Likeness, most: int) -> None:
        self._experts, self._likeness, self._most = experts, likeness, most
        self._use = Use(experts, tasks)
        self._inputs = torch.empty(0)
        self._met, self._step = 0, 1
        self._seen: Seen | None = None

    def see(self, seen: Seen) -> None:
        self._seen = seen
        self._use.see(seen)
        taken = seen.inputs[-self._met % self._step :: self._step]
        self._inputs = torch.cat([self._inputs.to(taken), taken])
        self._met += len(seen.inputs)
        while len(self._inputs) > self._most:
            self._inputs, self._step = self._inputs[::2], 2 * self._step

    @torch.no_grad()
    def result(self) -> Arrays:
        seen = self._seen
        assert seen is not None, "a look has a batch"

        def outputs(expert: int, inputs: Tensor) -> Tensor:
            return seen.outputs(expert, inputs).float()

        self._seen = None
        measure = {"cka": cka, "mse": mse}[self._likeness]
        return {"apart": measure(outputs, self._experts, self._inputs), "use": self._use.mean()}


def mse(outputs: Callable[[int, Tensor], Tensor], experts: int, inputs: Tensor) -> F64:
    """f64[E, E]: mean squared difference of outputs, as a share of what it is for two outputs at right angles."""
    products = torch.zeros(experts, experts, dtype=torch.float64)
    for start in range(0, len(inputs), PART):
        part = inputs[start : start + PART]
        each = torch.stack([outputs(expert, part).flatten() for expert in range(experts)])
        products += (each @ each.T).double().cpu()
    norms = products.diagonal()
    found = (norms[:, None] + norms[None] - 2 * products).clamp(min=0)
    return _symmetric(found / (2 * norms.mean()).clamp(min=torch.finfo(torch.float64).tiny))


def cka(outputs: Callable[[int, Tensor], Tensor], experts: int, inputs: Tensor) -> F64:
    """f64[E, E]: 1 - linear CKA: how alike the outputs tell inputs apart, turns and scales left out."""
    grams = torch.empty(experts, len(inputs) ** 2)
    for expert in range(experts):
        found = outputs(expert, inputs)
        found = found - found.mean(dim=0)
        gram = (found @ found.T).flatten()
        grams[expert] = gram / gram.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return _symmetric(1 - (grams @ grams.T).double().clamp(max=1))


def _symmetric(found: Tensor) -> F64:
    found = (found + found.T) / 2
    found.fill_diagonal_(0.0)
    return np.asarray(found.numpy(), np.float64)
