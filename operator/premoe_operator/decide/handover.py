"""How a served name passes from one PrunedModel to another without a gap (blue and green). Pure.

A younger PrunedModel that names an older one in ``spec.model.takesOverFrom`` may have its served name: it is prepared
beside it, and when it has been Ready for as long as callers may take to find its workers, the older one's workers
stop. They come back when the younger one is deleted, suspended or names the older one no more.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

from premoe_operator.api.reasons import ConditionType
from premoe_operator.api.release import Drain
from premoe_operator.api.status import HandedOver, PrunedModelStatus
from premoe_operator.decide.situation import read_status
from premoe_operator.kube.objects import Json, age, is_deleting, model_key, uid_of


def contenders(model: Json, rivals: Sequence[Json]) -> list[Json]:
    """Those of the same served name that neither pass it on to this one nor have it from this one."""
    passing = {uid_of(each) for each in (*_line(model, rivals, _before), *_line(model, rivals, _after))}
    return [rival for rival in rivals if uid_of(rival) not in passing]


def heir(model: Json, rivals: Sequence[Json]) -> Json | None:
    """The one that takes the name over from this one, if any; of several the oldest."""
    return min(_after(model, rivals), key=age, default=None)


def handed_over(status: PrunedModelStatus, successor: Json | None, drain: Drain, now: str) -> HandedOver | None:
    """To whom the name has passed; None: to nobody, or not yet. Once it has, it stays so whatever happens there."""
    if successor is None or (successor.get("spec") or {}).get("suspend"):
        return None
    found = HandedOver(name=model_key(successor).name, uid=uid_of(successor))
    if status.handed_over == found:
        return found
    since = _ready_since(successor)
    if since is None or _seconds(since, now) < drain.pre_stop_seconds + drain.delay_seconds:
        return None
    return found


def _ready_since(model: Json) -> str | None:
    """Since when it has been Ready, with workers; None: it is not."""
    status = read_status(model)
    ready = next((each for each in status.conditions if each.type == ConditionType.READY), None)
    generation = int(model["metadata"].get("generation", 0))
    if ready is None or ready.status != "True" or ready.observed_generation != generation or not status.ready_replicas:
        return None
    return ready.last_transition_time


def _seconds(earlier: str, later: str) -> float:
    return (datetime.datetime.fromisoformat(later) - datetime.datetime.fromisoformat(earlier)).total_seconds()


def _line(model: Json, rivals: Sequence[Json], step: Callable[[Json, Sequence[Json]], list[Json]]) -> list[Json]:
    """Everyone that repeated steps lead to; each leads to older ones only, or to younger ones only."""
    found: list[Json] = []
    ends = [model]
    while ends:
        ends = [each for end in ends for each in step(end, rivals)]
        found += ends
    return found


def _before(model: Json, rivals: Sequence[Json]) -> list[Json]:
    return [rival for rival in rivals if _takes_over(model, rival)]


def _after(model: Json, rivals: Sequence[Json]) -> list[Json]:
    return [rival for rival in rivals if _takes_over(rival, model)]


def _takes_over(younger: Json, older: Json) -> bool:
    (namespace, name), named = model_key(older), (younger["spec"].get("model") or {}).get("takesOverFrom")
    return (
        named == name
        and younger["metadata"].get("namespace") == namespace
        and age(older) < age(younger)
        and not is_deleting(younger)
    )
