"""What a worker may run, checked against the model before any weight is read. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.errors import Conflict, InvalidInput
from premoe_runtime.formats.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets and slots that fit the model and each other."""

    budget: Budget
    generalist_budget: Budget
    slots: int
    on_unknown: OnUnknown


def check_limits(
    manifest: Manifest,
    *,
    budget: str,
    generalist_budget: str = "",
    slots: int | None = None,
    spare: int,
    on_unknown: OnUnknown,
) -> Limits:
    """Read the budgets and settle the slots per layer.

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
    if on_unknown == "full" and slots < manifest.num_experts:
        raise Conflict(
            f"policy full needs a slot for each of the {manifest.num_experts} experts a layer, but there are {slots}; "
            f"give --slots {manifest.num_experts}, or choose generalist or reject",
            reason="FULL_NEEDS_ALL_SLOTS",
        )
    return Limits(own, pooled, slots, on_unknown)


def model_name(manifest: Manifest, given: str = "") -> str:
    """The name under which the model is served: as given, else the end of its origin, else the start of its id."""
    if given:
        return given
    last = manifest.origin.url.rstrip("/").rpartition("/")[2].partition("@")[0]
    return last or manifest.model_id[:12]
