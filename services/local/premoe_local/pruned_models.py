"""What PrunedModels need of a store, out of the answer of `kubectl get prunedmodels -A -o json`.

Only the few fields that name a pack or a set are looked at, so that objects of other versions can be read too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.ids import bare_digest

_KIND = "PrunedModel"


@dataclass(frozen=True, slots=True)
class Needs:
    """Of one PrunedModel: packs and sets by id, and where its checkpoint comes from, which a source mark may name."""

    who: str
    models: frozenset[str]
    sets: frozenset[str] = field(default_factory=frozenset)
    source: str = ""
    revision: str = ""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)


class _Metadata(_Part):
    name: str = ""
    namespace: str = ""


class _Model(_Part):
    uri: str = ""
    revision: str = ""
    model_id: str = ""


class _Spec(_Part):
    model: _Model = _Model()


class _Resolved(_Part):
    model_id: str = ""
    pattern_set: str = ""


class _Status(_Part):
    serving_model_id: str = ""
    resolved: _Resolved = _Resolved()


class _PrunedModel(_Part):
    kind: str
    metadata: _Metadata = _Metadata()
    spec: _Spec = _Spec()
    status: _Status = _Status()


class _Answer(_Part):
    kind: str
    items: list[_PrunedModel] | None = None


def parse(text: str, where: str) -> list[Needs]:
    """What a list of PrunedModels, or a single one, needs. Raises InvalidInput in one line, also for other objects."""
    try:
        answer = _Answer.model_validate_json(text)
        found = [_PrunedModel.model_validate_json(text)] if answer.items is None else answer.items
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"])) or "document"
        raise _odd(where, f"{place}: {fault['msg']}") from None
    if odd := next((one.kind for one in found if one.kind != _KIND), ""):
        raise _odd(where, f"a {odd} is in it" if answer.items is not None else f"it is a {odd}")
    return [_needs(one) for one in found]


def _needs(one: _PrunedModel) -> Needs:
    status, model = one.status, one.spec.model
    return Needs(
        who=f"{_KIND} {one.metadata.namespace}/{one.metadata.name}",
        models=_ids(model.model_id, status.resolved.model_id, status.serving_model_id),
        sets=_ids(status.resolved.pattern_set),
        source=model.uri,
        revision=model.revision,
    )


def _ids(*names: str) -> frozenset[str]:
    return frozenset(bare_digest(name) for name in names if name)


def _odd(where: str, what: str) -> InvalidInput:
    return InvalidInput(
        f"{where}: {what}; give the answer of `kubectl get prunedmodels -A -o json`", reason="PRUNED_MODELS_INVALID"
    )
