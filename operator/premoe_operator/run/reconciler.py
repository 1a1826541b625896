"""One reconcile: observe, plan, write, say how it is. Thin: what to do is decided in ``plan``.

Safe to stop between any two calls: the next reconcile starts from what is there then.
"""

from __future__ import annotations

import datetime
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

from premoe_operator.api.names import CONFLICT_MANAGER
from premoe_operator.api.reasons import Reason
from premoe_operator.api.release import Release
from premoe_operator.decide.changes import Changes
from premoe_operator.decide.events import ready_event
from premoe_operator.decide.observed import Observed, Refusal
from premoe_operator.decide.plan import Plan, plan
from premoe_operator.decide.situation import conflict_said, read_status
from premoe_operator.decide.status import conflict_document, conflict_message, status_document
from premoe_operator.kube.cache import Cache
from premoe_operator.kube.cluster import ApiFailure, Cluster
from premoe_operator.kube.kinds import Kind
from premoe_operator.kube.objects import Json, ModelKey, ObjectKey, is_deleting, key_of
from premoe_operator.run.observer import ExpertStore, Observer, Preloads

ROUNDS = 2
"""Of writes before the status is said: what follows from the first, such as the Deployment from a pack whose id was
read, is written in the second, and nobody is told of the state in between."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reconcile went."""

    writes: int = 0
    """API calls that changed something."""
    again: bool = False
    """Whether a write was refused, or more is to be written: the model comes again, after a growing wait, so that an
    API server that keeps something else than we sent is not asked over and over."""
    requeue_after_s: float | None = None
    ready: bool | None = None
    """Whether the model is Ready; ``None``: it is gone."""


def now_text() -> str:
    """The time as conditions write it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Reconciler:
    """For one event loop; calls for different models may overlap, for one model they must not."""

    def __init__(
        self,
        cluster: Cluster,
        store: ExpertStore,
        preloads: Preloads,
        cache: Cache,
        release: Release,
        *,
        poll_s: float,
        unwatched: Collection[Kind] = (),
        now: Callable[[], str] = now_text,
    ) -> None:
        self._cluster = cluster
        self._observer = Observer(cluster, store, preloads, cache, release, unwatched)
        self._cache = cache
        self._release = release
        self._poll_s = poll_s
        self._now = now
        self._heard: set[ModelKey] = set()
        """Models whose word of another release has been removed."""

    async def reconcile(self, model: ModelKey) -> Outcome:
        """Raises ApiFailure when the API is down or answers what the next try may mend, and FenceClosed."""
        await self._take_back(model)
        writes = 0
        for _ in range(ROUNDS):
            observed = await self._observer.observe(model)
            if observed is None:
                self._observer.forget(model)
                self._heard.discard(model)
                return Outcome()
            document, final = observed.model, self._plan(observed)
            refusals, written = await self._execute(model, final.changes)
            if written or refusals:
                observed = replace(observed, children=self._observer.children(model), refusals=refusals)
                final = self._plan(observed)
            writes += written
            if refusals or not final.changes.writes:
                break
        if final.status is not None:
            writes += await self._say(document, final)
        return Outcome(
            writes=writes,
            again=bool(refusals) or final.changes.writes,
            requeue_after_s=final.requeue_after_s,
            ready=_is_ready(final, document),
        )

    async def stand_back(self, key: ModelKey, holder: str) -> Outcome:
        """Another release serves the model's namespace: say so, once, and leave everything alone. Raises ApiFailure."""
        self._observer.forget(key)
        self._heard.discard(key)
        model, message = self._cache.model(key), conflict_message(holder)
        if model is None or is_deleting(model) or conflict_said(model) == message:
            return Outcome()
        await self._say_conflict(model, message)
        return Outcome(writes=1)

    async def _take_back(self, key: ModelKey) -> None:
        """Remove what a release said when it stood back: once, as one that still does says it again."""
        model = self._cache.model(key)
        if model is not None and key not in self._heard and conflict_said(model):
            await self._say_conflict(model, "")
        self._heard.add(key)

    async def _say_conflict(self, model: Json, message: str) -> None:
        document = conflict_document(model, message, self._now())
        self._cache.put(await self._cluster.apply_status(document, manager=CONFLICT_MANAGER))

    def _plan(self, observed: Observed) -> Plan:
        return plan(observed, self._release, now=self._now(), poll_s=self._poll_s)

    async def _execute(self, model: ModelKey, todo: Changes) -> tuple[dict[ObjectKey, Refusal], int]:
        """Write what was planned, all that can be. Returns what could not, and how many writes went through.

        Raises ApiFailure when a second write gets no answer: one may be a webhook that hangs, two are the API server.
        """
        cluster = self._cluster
        steps: list[tuple[ObjectKey, Callable[[], Awaitable[Json | None]]]] = [
            *((key_of(child), partial(cluster.create, child)) for child in todo.create),
            *((key_of(child), partial(cluster.apply, child)) for child in todo.apply),
            *((patch.key, partial(cluster.merge_patch, *patch.key, patch.patch)) for patch in todo.patch),
            *((doomed.key, partial(cluster.delete, *doomed.key, uid=doomed.uid)) for doomed in todo.delete),
        ]
        refusals: dict[ObjectKey, Refusal] = {}
        writes = unanswered = 0
        for key, write in steps:
            try:
                written = await write()
            except ApiFailure as failure:
                unanswered += failure.code == 0
                refusal = _refusal(key, failure)
                if refusal is None or unanswered > 1:
                    await self._lost_race(model, key, failure)
                else:
                    refusals[key] = refusal
                continue
            if written is not None:
                self._cache.put(written)
            writes += 1
        return refusals, writes

    async def _lost_race(self, model: ModelKey, key: ObjectKey, failure: ApiFailure) -> None:
        """Somebody else was there first (409), or the object has gone (404): look again. Raises other failures."""
        if failure.code not in (404, 409):
            raise failure
        _log.info("%s/%s: %s", model.namespace, model.name, failure.message)
        if await self._observer.look_at(model, key) is None and failure.code == 409:
            raise failure

    async def _say(self, model: Json, final: Plan) -> int:
        """Write the status, and one Event when Ready has changed."""
        if final.status is None:
            return 0
        try:
            self._cache.put(await self._cluster.apply_status(status_document(model, final.status)))
        except ApiFailure as failure:
            if failure.code in (404, 409):  # gone, or recreated under its name: a watch says so soon
                return 0
            raise
        event = ready_event(model, read_status(model), final.status, self._now())
        if event is not None:
            try:
                await self._cluster.create(event)
            except ApiFailure as failure:  # an Event is a courtesy
                _log.info("event not written: %s", failure.message)
        return 1


def _refusal(key: ObjectKey, failure: ApiFailure) -> Refusal | None:
    """What the API refuses, or fails at, for this object alone; ``None`` for what another look may mend."""
    subject = f"{key.kind.name} {key.name}: {failure.message}"
    if failure.code == 403 and "exceeded quota" in failure.message:
        return Refusal(Reason.QUOTA_EXCEEDED, subject)
    if failure.code == 0 or failure.code >= 500:
        return Refusal(Reason.WRITE_FAILED, subject)
    if failure.is_missing_kind:
        subject = f"{key.kind.name} {key.name}: this API server does not serve {key.kind.api_version}"
    if failure.code in (400, 403, 422) or failure.is_missing_kind:
        return Refusal(Reason.REFUSED_BY_API, subject)
    return None


def _is_ready(final: Plan, model: Json) -> bool:
    status = final.status or read_status(model)
    return any(condition.type == "Ready" and condition.status == "True" for condition in status.conditions)


def inventory(models: list[Json]) -> Mapping[str, int]:
    """How many PrunedModels have which reason of Ready."""
    counts: defaultdict[str, int] = defaultdict(int)
    for model in models:
        counts[str((model.get("status") or {}).get("reason") or "New")] += 1
    return counts
