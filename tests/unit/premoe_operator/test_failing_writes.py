"""A write that fails on one child is said, keeps nobody else waiting, and is tried again."""

from __future__ import annotations

import pytest
from premoe_operator.kube.cluster import ApiFailure
from premoe_operator.kube.kinds import DEPLOYMENT, DISRUPTION_BUDGET, JOB, PRUNED_MODEL, SERVICE, Kind, kind_of
from premoe_operator.kube.objects import Json, ObjectKey
from support.api_faults import drive
from support.cluster_twin import NAMESPACE, ClusterTwin
from support.served_models import KEY, condition, filled, model, operator, ready, twin_with

WEBHOOK_DOWN = ApiFailure(500, "InternalError", 'failed calling webhook "check.example": connection refused')
NO_ANSWER = ApiFailure(0, "Unreachable", "the API server did not answer: TimeoutError")


class FailingTwin(ClusterTwin):
    """Writes of one kind fail while ``failure`` is set."""

    failure: ApiFailure | None = None
    failing: tuple[Kind, ...] = ()

    def _check(self, kind: Kind) -> None:
        if self.failure is not None and kind in self.failing:
            self.calls.append(f"failed {kind.plural}")
            raise self.failure

    async def create(self, obj: Json) -> Json:
        self._check(kind_of(obj))
        return await super().create(obj)

    async def apply(self, obj: Json) -> Json:
        self._check(kind_of(obj))
        return await super().apply(obj)

    async def merge_patch(self, kind: Kind, namespace: str, name: str, patch: Json) -> Json:
        self._check(kind)
        return await super().merge_patch(kind, namespace, name, patch)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        self._check(kind)
        await super().delete(kind, namespace, name, uid=uid)


def failing(failure: ApiFailure, *kinds: Kind) -> FailingTwin:
    twin = filled(FailingTwin(), model())
    twin.failure, twin.failing = failure, kinds
    return twin


@pytest.mark.parametrize("failure", [WEBHOOK_DOWN, NO_ANSWER, ApiFailure(504, "Timeout", "etcd is slow")])
async def test_one_child_that_fails_is_said_and_the_others_are_made(failure: ApiFailure) -> None:
    twin = failing(failure, SERVICE)
    outcome = await operator(twin).reconcile(KEY)
    assert outcome.again
    found = condition(twin, "ChildrenApplied")
    assert (found["status"], found["reason"]) == ("False", "WriteFailed")
    assert found["message"] == f"Service chat-worker: {failure.message}"
    assert twin.of_kind(JOB)
    assert twin.of_kind(DISRUPTION_BUDGET)
    assert twin.calls.count("failed services") == 1
    twin.failure = None
    await drive(operator(twin), KEY, twin.advance)
    assert ready(twin) == ("True", "AllReady")


CHANGES: dict[str, tuple[Kind, Json]] = {
    "apply": (DEPLOYMENT, {"workers": {"replicas": 3}}),
    "patch": (JOB, {"suspend": True}),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_that_fails_is_said_and_made_later(change: str) -> None:
    twin = failing(WEBHOOK_DOWN)
    twin.failure = None
    await drive(operator(twin), KEY, twin.advance)
    kind, spec = CHANGES[change]
    twin.edit(ObjectKey(PRUNED_MODEL, *KEY), {"spec": spec})
    twin.failure, twin.failing = WEBHOOK_DOWN, (kind,)
    outcome = await operator(twin).reconcile(KEY)
    assert outcome.again
    assert condition(twin, "ChildrenApplied")["reason"] == "WriteFailed"
    twin.failure = None
    await drive(operator(twin), KEY, twin.advance)
    assert ready(twin)[0] == "True"


async def test_the_same_failure_is_written_once() -> None:
    twin = failing(WEBHOOK_DOWN, SERVICE)
    life = operator(twin)
    for _ in range(3):
        await life.reconcile(KEY)
    assert twin.calls.count("apply_status") == 1


async def test_an_api_server_that_is_away_is_not_asked_for_every_child() -> None:
    """A webhook that hangs looks the same on one child; on two it is the API server, which takes no status either."""
    twin = failing(NO_ANSWER, *{kind_of(child) for child in await children_made()})
    with pytest.raises(ApiFailure, match="did not answer"):
        await operator(twin).reconcile(KEY)
    assert sum(call.startswith("failed") for call in twin.calls) == 2


async def children_made() -> list[Json]:
    twin = twin_with(model())
    await operator(twin).reconcile(KEY)
    return [child for child in twin.children(KEY) if child["metadata"]["namespace"] == NAMESPACE]
