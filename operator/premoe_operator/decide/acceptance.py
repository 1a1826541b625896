"""Whether a spec can be served, beyond what the API server could check; and what the pack's facts come out as. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from premoe_operator.api.reasons import Reason
from premoe_operator.api.status import Resolved
from premoe_operator.children import parse_bytes, pod_template_refusals, worker_device
from premoe_operator.decide.conditions import Verdict
from premoe_operator.decide.handover import contenders
from premoe_operator.decide.observed import Observed, PackFacts, StoreFailure
from premoe_operator.decide.situation import Situation
from premoe_operator.kube.objects import age, model_key
from premoe_runtime.formats.allocation import even_slots
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import InvalidInput

PROCESS_BYTES = 256 << 20
"""What a worker takes without a model."""


def acceptance(situation: Situation, observed: Observed, resolved: Resolved) -> Verdict:
    """The verdict on the spec, as far as the wanted pack is known by now. Of two equal served names the older one's
    holds, unless one passes it on to the other.
    """
    inputs = situation.inputs
    oldest = min((situation.model, *contenders(situation.model, observed.rivals)), key=age)
    if oldest is not situation.model:
        first = model_key(oldest)
        name = inputs.served_name
        message = (
            f"{first.namespace}/{first.name} is older and has the served name {name}; "
            "to follow it, name it in spec.model.takesOverFrom"
        )
        return Verdict("False", Reason.SERVED_NAME_CONFLICT, message)
    refusals = pod_template_refusals(inputs)
    if refusals:
        return Verdict("False", Reason.POD_TEMPLATE_REFUSED, refusals[0])
    if resolved.layers and resolved.model_id == (situation.packed_id or inputs.resolved_id):
        try:
            _check_budgets(situation, resolved)
        except InvalidInput as error:
            return Verdict("False", Reason.BUDGET_IMPOSSIBLE, str(error))
        lack = _memory_lack(situation, resolved)
        if lack:
            return Verdict("False", Reason.MEMORY_TOO_SMALL, lack)
    return Verdict("True", Reason.ACCEPTED)


def with_facts(resolved: Resolved, situation: Situation, store: PackFacts | StoreFailure | None) -> Resolved:
    """What is resolved, with the store's facts and the pattern set that was built."""
    changes: dict[str, object] = {}
    if isinstance(store, PackFacts):
        changes = {
            "model_id": store.model_id,
            "family": store.family,
            "layers": len(store.layer_experts),
            "experts": max(store.layer_experts),
            "layer_experts": list(store.layer_experts) if len(set(store.layer_experts)) > 1 else [],
            "top_k": store.top_k,
            "expert_bytes": sum(store.layer_experts) * store.blob_bytes,
            "skeleton_bytes": store.skeleton_bytes,
        }
    if situation.patterns is not None and situation.patterns.state.phase == "Complete":
        changes["pattern_set"] = str(situation.patterns.state.result.get("patternSet", "")) or resolved.pattern_set
    resolved = resolved.model_copy(update=changes)
    if resolved.layers and resolved.experts:
        experts = resolved.layer_experts or [resolved.experts] * resolved.layers
        slots = sum(_slots(situation, experts))
        resolved = resolved.model_copy(update={"resident_bytes": resolved.expert_bytes // sum(experts) * slots})
    return resolved


def _budgets(situation: Situation) -> list[Budget]:
    spec = situation.inputs.spec
    return [Budget.parse(text) for text in (spec.budget, spec.patterns.generalist_budget) if text]


def _check_budgets(situation: Situation, resolved: Resolved) -> None:
    """Raise InvalidInput where the model has fewer experts, or a worker fewer slots, than a budget needs."""
    engine = situation.inputs.spec.engine
    for budget in _budgets(situation):
        budget.check(top_k=resolved.top_k, num_experts=resolved.experts)
        if engine.slots is not None:
            budget.check_slots(engine.slots, num_experts=resolved.experts, spare=engine.spare)


def _memory_lack(situation: Situation, resolved: Resolved) -> str:
    """What a worker needs beyond its memory limit, in a sentence; empty: it fits, or there is no limit.

    Counted is what is known to be there all the time: the weights unless they are on a GPU, the host memory asked for,
    memory volumes, and the process itself.
    """
    spec = situation.inputs.spec
    limit = spec.workers.resources.limits.get("memory")
    if limit is None:
        return ""
    parts = {"the process": PROCESS_BYTES}
    if worker_device(situation.inputs) == "cpu":
        parts |= {"slots": resolved.resident_bytes, "everything but the experts": resolved.skeleton_bytes}
    for name, size in (("engine.hostMemory", spec.engine.host_memory), ("/dev/shm", spec.workers.shared_memory_size)):
        parts[name] = 0 if size is None else parse_bytes(size)
    if sum(parts.values()) <= parse_bytes(limit):
        return ""
    listed = ", ".join(f"{count / 2**30:.1f} GiB for {name}" for name, count in parts.items() if count)
    return f"a worker needs at least {listed}, and its memory limit is {limit} (workers.resources.limits)"


def _slots(situation: Situation, experts: Sequence[int]) -> tuple[int, ...]:
    """Expert slots of one worker in every layer; a pattern set spreads them otherwise, but not more of them."""
    spec = situation.inputs.spec
    number = spec.engine.slots
    if number is None:
        number = max(budget.kept for budget in _budgets(situation)) + spec.engine.spare
    return even_slots(number, experts, "uniform" if spec.allocation == "Uniform" else "shared")
