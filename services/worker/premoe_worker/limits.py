"""What a worker may run, checked against the model before any weight is read. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from premoe_runtime.formats.allocation import even_slots
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation, OnUnknown
from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput
from premoe_runtime.formats.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets and slots that fit the model and each other. ``slots``: those of every MoE layer."""

    budget: Budget
    generalist_budget: Budget
    slots: tuple[int, ...]
    on_unknown: OnUnknown
    allocation: Allocation = "shared"
    split_problem: str = ""
    """Why a shared worker started with equal slots; empty where it did not."""

    @property
    def kept(self) -> int:
        """Experts a layer, on average, of the larger budget."""
        return max(self.budget.kept, self.generalist_budget.kept)

    @property
    def spare(self) -> int:
        """Slots a layer, on average, beside those, as far as there are experts for them."""
        return max(0, math.ceil(sum(self.slots) / len(self.slots)) - self.kept)

    def split(self, slots: Sequence[int]) -> Limits:
        """The same slots as a pattern set spreads them over the layers.

        Raises CorruptData: other layers or more slots in all. Raises Conflict: a layer with fewer slots than a budget
        activates experts.
        """
        if len(slots) != len(self.slots) or sum(slots) > sum(self.slots):
            raise CorruptData(
                f"the live pattern set spreads {sum(slots)} slots over {len(slots)} layers, but this worker has "
                f"{sum(self.slots)} in {len(self.slots)}; build the set again for this model",
                reason="SPLIT_INVALID",
            )
        for budget in (self.budget, self.generalist_budget):
            if min(slots) < budget.active:
                raise Conflict(
                    f"the live pattern set leaves MoE layer {list(slots).index(min(slots))} {min(slots)} slots, but "
                    f"budget {budget} activates {budget.active} experts; keep more, or give --allocation uniform",
                    reason="SPLIT_TOO_NARROW",
                )
        return replace(self, slots=tuple(slots))


def check_limits(
    manifest: Manifest,
    *,
    budget: str,
    generalist_budget: str = "",
    slots: int | None = None,
    spare: int,
    on_unknown: OnUnknown,
    allocation: Allocation = "shared",
) -> Limits:
    """Read the budgets and settle the slots, equally many a layer as far as it has experts. ``slots``: per layer.

    Raises InvalidInput: budget syntax, a > top-k, b < a, b > experts, slots < b + spare. Raises Conflict for the
    policy `full` without a slot for every expert.
    """
    own = Budget.parse(budget)
    pooled = Budget.parse(generalist_budget) if generalist_budget else own
    for each in (own, pooled):
        each.check(top_k=manifest.top_k, num_experts=manifest.num_experts)
    if slots is None:
        slots = min(max(own.kept, pooled.kept) + spare, manifest.num_experts)
    if slots > manifest.num_experts:
        raise InvalidInput(
            f"{slots} slots a layer are more than the model's {manifest.num_experts} experts; "
            f"give at most {manifest.num_experts}",
            reason="SLOTS_TOO_MANY",
        )
    for each in (own, pooled):
        each.check_slots(slots, num_experts=manifest.num_experts, spare=spare)
    layer_slots = even_slots(slots, manifest.layer_experts, allocation)
    if on_unknown == "full" and layer_slots != manifest.layer_experts:
        raise Conflict(
            f"policy full needs a slot for each of the {manifest.num_experts} experts a layer, but there are {slots}; "
            f"give --slots {manifest.num_experts}, or choose generalist or reject",
            reason="FULL_NEEDS_ALL_SLOTS",
        )
    return Limits(own, pooled, layer_slots, on_unknown, allocation)


def model_name(manifest: Manifest, given: str = "") -> str:
    """The name under which the model is served: as given, else the end of its origin, else the start of its id."""
    if given:
        return given
    last = manifest.origin.url.rstrip("/").rpartition("/")[2].partition("@")[0]
    return last or manifest.model_id[:12]
