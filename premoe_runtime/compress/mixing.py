"""A base and its fine-tunes added up, each with coefficients of its own for every layer, or for parts of layers.

theta = theta_base + Σ_k alpha_k (theta_k - theta_base), taken as (1 - Σ_k alpha_k) theta_base + Σ_k alpha_k theta_k:
one fine-tune with the coefficient 1 is that fine-tune bit for bit, and coefficients of 0 are the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import prod

import torch
from torch import Tensor

from premoe_runtime.compress.config import width_of
from premoe_runtime.compress.result import Compressed
from premoe_runtime.compress.weights import ExpertWeights, PackWeights
from premoe_runtime.engines.hf.blocks import block_of

FLOATS = frozenset({"F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Which chunk every row of every weight belongs to: i64[rows] by name.

    Names are those of the skeleton, and ``experts.LAYER`` for all weights of a layer's experts, whose rows are experts.
    ``parts``: names by block; the last one has what is in no block. ``counts``: chunks of every part, numbered through.
    """

    parts: tuple[tuple[str, ...], ...]
    counts: tuple[int, ...]
    chunks: Mapping[str, Tensor]

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def owners(self) -> Tensor:
        """i64[total]: the part of every chunk."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts))


def parts_of(old: PackWeights) -> tuple[tuple[str, ...], ...]:
    """Names of all weights by block, in order, and of those in none."""
    model = old.model
    found: list[list[str]] = [[] for _ in range(model.num_blocks + 1)]
    for name, entry in old.tensors.items():
        block = block_of(model, name)
        if entry.dtype in FLOATS:
            found[-1 if block is None else block].append(name)
    for layer, block in enumerate(model.blocks):
        found[block].append(f"experts.{layer}")
    return tuple(map(tuple, found))


def size_of(old: PackWeights, name: str) -> tuple[int, int]:
    """Rows of a weight, and weights a row."""
    if name.startswith("experts."):
        count = old.manifest.layer_experts[int(name.split(".")[1])]
        return count, sum(prod(field.shape) for field in old.manifest.layout.fields)
    shape = old.tensors[name].shape
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


def laid_out(old: PackWeights, counts: Sequence[int] | None = None) -> Layout:
    """Every block in so many chunks of equal size, cut between rows; by default one.

    What is in no block stays whole: weights that are tied to each other are there.
    """
    parts = parts_of(old)
    counts = (*(counts or (1,) * (len(parts) - 1)), 1)
    chunks, first = dict[str, Tensor](), 0
    for names, count in zip(parts, counts, strict=True):
        sizes = [size_of(old, name) for name in names]
        whole, done = max(sum(rows * each for rows, each in sizes), 1), 0
        for name, (rows, each) in zip(names, sizes, strict=True):
            places = done + each * torch.arange(rows)
            chunks[name] = first + torch.div(places * count, whole, rounding_mode="floor")
            done += rows * each
        first += count
    return Layout(parts, counts, chunks)


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """``alpha`` f32[K, C] of K fine-tunes and the layout's C chunks."""

    base: PackWeights
    tuned: tuple[PackWeights, ...]
    layout: Layout
    alpha: Tensor

    def tensor(self, name: str) -> Tensor:
        """A skeleton weight; one that is not of floating point stays the base's."""
        if name not in self.layout.chunks:
            return self.base.tensor(name)
        return self._sum(name, (source.tensor(name).float() for source in (self.base, *self.tuned)))

    def experts(self, layer: int) -> ExpertWeights:
        """All experts of a layer; those of one source at a time are in memory beside the sum."""
        name, total = f"experts.{layer}", dict[str, Tensor]()
        for source, factors in zip((self.base, *self.tuned), self._factors(name), strict=True):
            weights = source.experts(layer)
            for field in fields(weights):
                value = getattr(weights, field.name)
                if value is not None:
                    _add(total, field.name, value, factors)
        return ExpertWeights(**total)

    def compressed(self) -> Compressed:
        """The pack that it makes."""
        key = [*(source.manifest.model_id for source in (self.base, *self.tuned)), self.layout.counts]
        return Compressed(
            experts=self.base.manifest.layer_experts,
            width=width_of(self.base.model),
            router=partial(self.base.router, read=self.tensor),
            weights=self.experts,
            key=f"{key} {self.alpha.tolist()}",
            tensors={
                name: partial(self.tensor, name)
                for name in self.layout.chunks
                if not name.startswith("experts.") and name not in self.base.routers
            },
        )

    def _factors(self, name: str) -> Iterator[Tensor]:
        """f32[rows] of the base, then of each fine-tune."""
        rows = self.alpha[:, self.layout.chunks[name]]
        yield 1 - rows.sum(dim=0)
        yield from rows

    def _sum(self, name: str, sources: Iterator[Tensor]) -> Tensor:
        total = dict[str, Tensor]()
        for value, factors in zip(sources, self._factors(name), strict=True):
            _add(total, name, value, factors)
        return total[name]


def _add(total: dict[str, Tensor], name: str, value: Tensor, factors: Tensor) -> None:
    weighed = value * factors.reshape(value.shape[:1] + (1,) * (value.dim() - 1))
    total[name] = total[name].add_(weighed) if name in total else weighed
