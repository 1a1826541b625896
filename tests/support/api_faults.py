"""Faults of the Kubernetes API at a chosen call: a crash of the operator before or after it, or a refusal.

``Crash`` is what a SIGKILL would be: nothing in the operator catches it. A new ``Operator`` then starts over with an
empty cache, as a new process would.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kubernetes.aio.client import ApiClient
from premoe_operator.api.names import FIELD_MANAGER, LABEL_MODEL
from premoe_operator.api.release import Release
from premoe_operator.decide.observed import PackFacts, StoreFailure, WorkerPreload, WorkersAsked
from premoe_operator.kube.cache import Cache
from premoe_operator.kube.cluster import Cluster, Listed
from premoe_operator.kube.connection import Connection
from premoe_operator.kube.kinds import CERTIFICATE, CHILDREN, PRUNED_MODEL, Kind
from premoe_operator.kube.objects import Json, ModelKey
from premoe_operator.run.observer import ExpertStore
from premoe_operator.run.reconciler import Outcome, Reconciler

When = Literal["before", "after"]

KINDS = tuple(kind for kind in CHILDREN if kind is not CERTIFICATE)
ROUNDS_MAX = 60


class Crash(BaseException):
    """The process ended."""


class FaultyCluster:
    """Passes calls on, and crashes before or after the one with the number ``at``, counted from 1.

    ``writes_only`` counts no reads: how many there are depends on how long others take.
    """

    def __init__(self, inner: Cluster, *, at: int = 0, when: When = "before", writes_only: bool = False) -> None:
        self._inner = inner
        self._at = at
        self._when = when
        self._writes_only = writes_only
        self.calls: list[str] = []

    async def _pass(self, name: str, call: Callable[[], Any]) -> Any:
        if self._writes_only and name.startswith(("list ", "get ")):
            return await call()
        self.calls.append(name)
        hit = len(self.calls) == self._at
        if hit and self._when == "before":
            raise Crash(name)
        answer = await call()
        if hit:
            raise Crash(name)
        return answer

    async def list(
        self, kind: Kind, namespace: str | None, *, label_selector: str = "", field_selector: str = ""
    ) -> Listed:
        selectors = {"label_selector": label_selector, "field_selector": field_selector}
        answer: Listed = await self._pass(f"list {kind.plural}", lambda: self._inner.list(kind, namespace, **selectors))
        return answer

    async def get(self, kind: Kind, namespace: str, name: str) -> Json | None:
        answer: Json | None = await self._pass(f"get {kind.plural}", lambda: self._inner.get(kind, namespace, name))
        return answer

    async def create(self, obj: Json) -> Json:
        answer: Json = await self._pass(f"create {obj['kind']}", lambda: self._inner.create(obj))
        return answer

    async def apply(self, obj: Json) -> Json:
        answer: Json = await self._pass(f"apply {obj['kind']}", lambda: self._inner.apply(obj))
        return answer

    async def apply_status(self, obj: Json, *, manager: str = FIELD_MANAGER) -> Json:
        answer: Json = await self._pass("apply_status", lambda: self._inner.apply_status(obj, manager=manager))
        return answer

    async def merge_patch(self, kind: Kind, namespace: str, name: str, patch: Json) -> Json:
        answer: Json = await self._pass(
            f"patch {kind.plural}", lambda: self._inner.merge_patch(kind, namespace, name, patch)
        )
        return answer

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        await self._pass(f"delete {kind.plural}", lambda: self._inner.delete(kind, namespace, name, uid=uid))

    async def replace(self, obj: Json) -> Json:
        answer: Json = await self._pass(f"update {obj['kind']}", lambda: self._inner.replace(obj))
        return answer


class FactsStore:
    """An expert store that answers every id the same."""

    def __init__(self, answer: PackFacts | StoreFailure) -> None:
        self.answer = answer
        self.calls = 0

    async def facts(self, address: str, model_id: str) -> PackFacts | StoreFailure:
        self.calls += 1
        return self.answer


class ScriptedWorkers:
    """Workers that say at once what they keep resident, in place of a ``PreloadWatch``."""

    def __init__(self, *said: WorkerPreload) -> None:
        self.said = said
        self.asked: WorkersAsked | None = None

    def look(self, model: ModelKey, asked: WorkersAsked | None) -> tuple[WorkerPreload, ...] | None:
        self.asked = asked
        return self.said if asked is not None else None


class Operator:
    """One life of the operator: an empty cache, filled by lists before every reconcile instead of by watches."""

    def __init__(
        self,
        plain: Cluster,
        faulty: Cluster,
        store: ExpertStore,
        release: Release,
        namespace: str,
        workers: ScriptedWorkers | None = None,
        now: Callable[[], str] = lambda: "2026-01-01T00:00:00Z",
    ) -> None:
        self._plain = plain
        self._namespace = namespace
        self.cache = Cache()
        self._reconciler = Reconciler(
            faulty,
            store,
            (workers or ScriptedWorkers()).look,
            self.cache,
            release,
            poll_s=1.0,
            now=now,
        )

    async def reconcile(self, model: ModelKey) -> Outcome:
        await self._list(model)
        return await self._reconciler.reconcile(model)

    async def stand_back(self, model: ModelKey, holder: str) -> Outcome:
        await self._list(model)
        return await self._reconciler.stand_back(model, holder)

    async def _list(self, model: ModelKey) -> None:
        for kind in (PRUNED_MODEL, *KINDS):
            selector = "" if kind is PRUNED_MODEL else f"{LABEL_MODEL}={model.name}"
            listed = await self._plain.list(kind, self._namespace, label_selector=selector)
            self.cache.replace(kind, self._namespace, listed)


async def drive(
    operator: Operator, model: ModelKey, advance: Callable[[], None], *, rounds: int = ROUNDS_MAX
) -> Outcome:
    """Reconcile until nothing is written any more. Raises AssertionError if that never ends."""
    for _ in range(rounds):
        outcome = await operator.reconcile(model)
        advance()
        if not outcome.writes and not (await operator.reconcile(model)).writes:
            return outcome
    raise AssertionError(f"still writing after {rounds} rounds")


class StormClient(ApiClient):
    """Answers a share of requests with the given codes instead of passing them on; seeded."""

    def __init__(self, connection: Connection, codes: Iterable[int], *, share: float, seed: int) -> None:
        super().__init__(connection.configuration)
        self._codes = tuple(codes)
        self._share = share
        self._random = random.Random(seed)
        self.answered = 0

    async def call_api(self, method: str, url: str, *args: Any, **options: Any) -> Any:
        writes = method != "GET"
        if self._random.random() >= self._share or not (writes or 429 in self._codes):
            return await super().call_api(method, url, *args, **options)
        self.answered += 1
        code = self._random.choice(self._codes)
        status = {"kind": "Status", "code": code, "reason": "TooManyRequests" if code == 429 else "Conflict"}
        headers = {"Retry-After": "0"} if code == 429 else {}
        return CannedAnswer(code, json.dumps({**status, "message": "a storm"}).encode(), headers)


@dataclass
class CannedAnswer:
    """What the client's ``call_api`` returns, as far as we use it."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    async def read(self) -> bytes:
        return self.body
