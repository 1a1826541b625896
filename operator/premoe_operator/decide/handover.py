"""How a served name passes from one PrunedModel to another without a gap (blue and green). Pure.

A younger PrunedModel that names an older one in ``spec.model.takesOverFrom`` may have its served name: it is prepared
beside it, and when it has been Ready for as long as callers may take to find its workers, the older one's workers
stop. They come back when the younger one is deleted, suspended or names the older one no more. Of a longer line the
youngest that has had the name has it, and nobody comes back while a later one of the line is there and not suspended.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

from premoe_operator.api.reasons import ConditionType
from premoe_operator.api.release import Drain
from premoe_operator.api.status import BEFORE_MAX, HandedOver, PrunedModelStatus
from premoe_operator.decide.situation import read_status
from premoe_operator.kube.objects import Json, age, is_deleting, model_key, uid_of


def contenders(model: Json, rivals: Sequence[Json]) -> list[Json]:
    """Those of the same served name that neither pass it on to this one nor have it from this one."""
    passing = _line(model, rivals, _before) | _line(model, rivals, _after)
    return [rival for rival in rivals if uid_of(rival) not in passing]


def heirs(model: Json, rivals: Sequence[Json]) -> list[Json]:
    """Those that may have the name after this one, in turn; the oldest first."""
    line = _line(model, rivals, _after)
    return sorted((each for each in rivals if uid_of(each) in line and not each["spec"].get("suspend")), key=age)


def handed_over(status: PrunedModelStatus, later: Sequence[Json], drain: Drain, now: str) -> HandedOver | None:
    """To whom of ``later`` the name has passed; None: to nobody, or not yet. Once it has, it stays so whatever happens
    there.
    """
    had = _uids(status.handed_over)
    holders = [each for each in later if uid_of(each) in had or _has_been_ready(each, drain, now)]
    if not holders:
        return None
    *before, last = holders
    uids = [uid_of(each) for each in before[-BEFORE_MAX:]]
    return HandedOver(name=model_key(last).name, uid=uid_of(last), before=uids)


def may_pass(passed: HandedOver | None, later: Sequence[Json]) -> bool:
    """Whether the name may pass on later: of a status that this operator wrote itself it gets no news."""
    return any(uid_of(each) not in _uids(passed) for each in later)


def _uids(passed: HandedOver | None) -> set[str]:
    return set() if passed is None else {passed.uid, *passed.before}


def _has_been_ready(model: Json, drain: Drain, now: str) -> bool:
    """Whether it is Ready for as long as callers may take to find its workers."""
    since = _ready_since(model)
    return since is not None and _seconds(since, now) >= drain.pre_stop_seconds + drain.delay_seconds


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


def _line(model: Json, rivals: Sequence[Json], step: Callable[[Json, Sequence[Json]], list[Json]]) -> set[str]:
    """Uids of everyone that repeated steps lead to; each leads to older ones only, or to younger ones only."""
    found: set[str] = set()
    ends = [model]
    while ends:
        for each in step(ends.pop(), rivals):
            if uid_of(each) not in found:
                found.add(uid_of(each))
                ends.append(each)
    return found


def _before(model: Json, rivals: Sequence[Json]) -> list[Json]:
    return [rival for rival in rivals if _takes_over(model, rival)]


def _after(model: Json, rivals: Sequence[Json]) -> list[Json]:
    return [rival for rival in rivals if _takes_over(rival, model)]


def _takes_over(younger: Json, older: Json) -> bool:
    """By its spec, or because it has had the name from one in between that may be gone by now."""
    (namespace, name), named = model_key(older), (younger["spec"].get("model") or {}).get("takesOverFrom")
    return (
        (named == name or (bool(named) and uid_of(younger) in _uids(read_status(older).handed_over)))
        and younger["metadata"].get("namespace") == namespace
        and age(older) < age(younger)
        and not is_deleting(younger)
    )
