"""Which neuron of one expert does the work of which of another: neurons have no order of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from premoe_runtime.compress.plan import Plan, experts_of
from premoe_runtime.compress.result import Compressed, planned
from premoe_runtime.compress.weights import ExpertWeights, PackWeights
from premoe_runtime.formats.arrays import I64


def merged_experts(plan: Plan, old: PackWeights, facts: Mapping[str, object]) -> Compressed:
    """What a plan of merged experts makes of a pack's: neurons are aligned when their layer is written."""

    def weights(layer: int) -> ExpertWeights:
        found = old.experts(layer)
        return experts_of([replace(made, neurons=aligned(found, made.members)) for made in plan.layers[layer]], found)

    return replace(planned(plan, old, facts), weights=weights, key=f"aligned {plan.digest}")


def aligned(weights: ExpertWeights, members: Sequence[int] | I64) -> I64:
    """i64[m, I]: for each member the neuron that stands at each place of the first one.

    Of all permutations the one whose neurons are nearest to the first member's, by the squared distance of all weights
    of a neuron (row of gate, row of up, column of down, biases), found exactly.
    """
    # scipy takes a quarter of a second to import, and only merging needs it.
    from scipy.optimize import linear_sum_assignment

    first, *others = (int(member) for member in members)
    reference = neurons(weights, first)
    orders = [np.arange(weights.width, dtype=np.int64)]
    for member in others:
        # A permutation keeps all norms: the nearest is the one of the greatest products.
        products = reference @ neurons(weights, member).T
        orders.append(linear_sum_assignment(products.numpy(), maximize=True)[1].astype(np.int64))
    return np.stack(orders)


def neurons(weights: ExpertWeights, expert: int) -> Tensor:
    """f32[I, D]: all weights of each neuron of an expert, side by side."""
    found = [weights.gate[expert], weights.up[expert], weights.down[expert].T]
    biases = (weights.gate_bias, weights.up_bias)
    return torch.cat([*found, *(one[expert][:, None] for one in biases if one is not None)], dim=1)
