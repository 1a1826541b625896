"""Which old experts make each new one, and which of their neurons: what merging and pruning decide, as a value. Pure.

A plan knows no weights. ``experts_of`` and ``router_of`` say what it makes of a layer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import blake3
import numpy as np
import torch
from torch import Tensor

from premoe_runtime.compress.weights import ExpertWeights, RouterWeights
from premoe_runtime.formats.arrays import F64, I64

NOTHING = -1
"""In a row of neurons: no neuron, zeros."""


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """One new expert.

    members  old experts of the layer, i64[m], the one first that the others were aligned to
    shares   their weights in the mean, f64[m]; sum 1
    neurons  i64[m, width]: which neuron of each member stands at each place, NOTHING for zeros; None: all, in order
    """

    members: I64
    shares: F64
    neurons: I64 | None = None

    @classmethod
    def kept(cls, expert: int, neurons: Sequence[int] | I64 | None = None) -> Made:
        """One expert alone, all of it or some of its neurons."""
        found = None if neurons is None else np.asarray(neurons, np.int64)[None]
        return cls(np.array([expert], np.int64), np.ones(1), found)

    @classmethod
    def merged(cls, members: I64, use: F64) -> Made:
        """The mean of experts by their use f64[E] (equal where nobody uses them), the most used one first."""
        ordered = np.asarray(members[np.argsort(-use[members], kind="stable")], np.int64)
        total = use[ordered].sum()
        return cls(ordered, use[ordered] / total if total > 0 else np.full(len(ordered), 1 / len(ordered)))


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """New experts of every layer, all of ``width`` neurons."""

    layers: tuple[tuple[Made, ...], ...]
    width: int

    @property
    def experts(self) -> tuple[int, ...]:
        """Of every layer."""
        return tuple(map(len, self.layers))

    @property
    def digest(self) -> str:
        """blake3 of all that it says."""
        whole = blake3.blake3(str(self.width).encode())
        for layer in self.layers:
            whole.update(b"layer")
            for made in layer:
                whole.update(b"expert" + made.members.tobytes() + made.shares.tobytes())
                whole.update(b"" if made.neurons is None else made.neurons.tobytes())
        return whole.hexdigest()


def selection(kept: Sequence[Sequence[int]], width: int) -> Plan:
    """The plan that keeps experts as they are: their numbers, layer by layer."""
    return Plan(tuple(tuple(Made.kept(expert) for expert in layer) for layer in kept), width)


def router_of(made: Sequence[Made], router: RouterWeights) -> RouterWeights:
    """The router over the new experts: each row the mean of its members' by their shares, biases too."""
    mix = torch.zeros(len(made), len(router.weight))
    for row, one in enumerate(made):
        mix[row, torch.as_tensor(one.members)] = torch.as_tensor(one.shares).float()
    if all(len(one.members) == 1 for one in made):  # no arithmetic on what is only moved
        order = torch.as_tensor(np.concatenate([one.members for one in made]))
        return RouterWeights(router.weight[order], tuple(bias[..., order] for bias in router.biases))
    return RouterWeights(mix @ router.weight, tuple(bias @ mix.T for bias in router.biases))


def experts_of(made: Sequence[Made], old: ExpertWeights) -> ExpertWeights:
    """The new experts: each the mean, by shares, of its members with their neurons in order."""
    each = [_expert(one, old) for one in made]
    return ExpertWeights(**{name: torch.stack([one[name] for one in each]) for name in each[0]})


def _expert(made: Made, old: ExpertWeights) -> Mapping[str, Tensor]:
    total: dict[str, Tensor] = {}
    for row, (member, share) in enumerate(zip(made.members.tolist(), made.shares.tolist(), strict=True)):
        neurons = None if made.neurons is None else torch.as_tensor(np.ascontiguousarray(made.neurons[row]))
        for name, tensor in _member(old, member, neurons).items():
            part = tensor if len(made.members) == 1 else tensor * share
            total[name] = part if name not in total else total[name] + part
    return total


def _member(old: ExpertWeights, member: int, neurons: Tensor | None) -> dict[str, Tensor]:
    def along(tensor: Tensor, dim: int) -> Tensor:
        if neurons is None:
            return tensor
        there = (neurons != NOTHING).to(tensor.dtype)
        taken = tensor.index_select(dim, neurons.clamp(min=0))
        return taken * (there if dim == tensor.ndim - 1 else there[:, None])

    found = {
        "gate": along(old.gate[member], 0),
        "up": along(old.up[member], 0),
        "down": along(old.down[member], 1),
    }
    if old.gate_bias is not None and old.up_bias is not None and old.down_bias is not None:
        found |= {"gate_bias": along(old.gate_bias[member], 0), "up_bias": along(old.up_bias[member], 0)}
        found["down_bias"] = old.down_bias[member]
    return found
