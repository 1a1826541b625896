"""Whose pattern set is live: of some weights only one can be, and of PrunedModels that want different ones the oldest
decides. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from premoe_operator.kube.objects import Json, ModelKey, age, is_deleting, model_key


@dataclass(frozen=True, slots=True)
class PatternClaim:
    """What a PrunedModel with tasks wants to be live for its pack."""

    model_id: str
    wish: tuple[str, object, Json]
    """Namespace of ConfigMaps, budget and patterns: equal for PrunedModels that can share one set."""


def claim_of(model: Json | None) -> PatternClaim | None:
    """``None`` without tasks, or before the pack is known."""
    if model is None:
        return None
    spec = model.get("spec") or {}
    model_id = ((model.get("status") or {}).get("resolved") or {}).get("modelId")
    patterns: Json = spec.get("patterns") or {}
    if not model_id or not patterns.get("tasks"):
        return None
    # A ConfigMap of the same name in another namespace is another one.
    local = any("configMap" in (task.get("calibration") or {}) for task in patterns["tasks"])
    namespace = model["metadata"]["namespace"] if local else ""
    return PatternClaim(model_id, (namespace, _budget(spec), patterns))


def _budget(spec: Json) -> str:
    """The budget as text, whichever way the spec says it."""
    experts: Json = spec.get("experts") or {}
    return str(spec.get("budget") or f"{experts.get('active')}/{experts.get('kept')}")


def holder(model: Json, same_weights: Sequence[Json]) -> ModelKey | None:
    """The PrunedModel whose set is live in place of this one's; ``None`` if this one's may be."""
    first = min((model, *(other for other in same_weights if not is_deleting(other))), key=age)
    if first is model or claim_of(first) == claim_of(model):
        return None
    return model_key(first)
