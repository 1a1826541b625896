"""Two releases that watch one namespace: one serves it, the other says so once and keeps its hands off."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from premoe_operator.kube.cluster import ApiFailure
from premoe_operator.kube.kinds import LEASE, PRUNED_MODEL
from premoe_operator.kube.lease import LeaseTimes
from premoe_operator.kube.objects import Json, ModelKey, ObjectKey, uid_of
from premoe_operator.run.namespaces import LEASE_NAME, NamespaceClaims
from support.api_faults import drive
from support.cluster_twin import NAMESPACE, ClusterTwin
from support.served_models import KEY, condition, model, operator, ready, twin_with

TIMES = LeaseTimes(renew_s=100.0, fence_s=200.0, duration_s=300.0)
CLAIM = ObjectKey(LEASE, NAMESPACE, LEASE_NAME)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def claims(
    twin: ClusterTwin,
    release: str,
    clock: Clock,
    told: list[ModelKey] | None = None,
    news: Callable[[], object] = lambda: None,
) -> NamespaceClaims:
    return NamespaceClaims(
        twin,
        release,
        TIMES,
        models=lambda: list(twin.of_kind(PRUNED_MODEL)),
        concern=(told if told is not None else list[ModelKey]()).extend,
        news=news,
        clock=clock,
    )


async def test_the_first_release_serves_the_namespace_and_the_second_knows_whose_it_is() -> None:
    twin, clock = twin_with(model()), Clock()
    first, second = claims(twin, "blue", clock), claims(twin, "green", clock)
    assert await first.holder(NAMESPACE) == ""
    assert await second.holder(NAMESPACE) == "blue"
    calls = len(twin.calls)
    assert await first.holder(NAMESPACE) == ""
    assert await second.holder(NAMESPACE) == "blue"
    assert len(twin.calls) == calls


async def test_the_claim_goes_with_the_models_of_its_namespace() -> None:
    twin = twin_with(model())
    await claims(twin, "blue", Clock()).holder(NAMESPACE)
    (owner,) = twin.objects[CLAIM]["metadata"]["ownerReferences"]
    assert owner["uid"] == uid_of(twin.objects[ObjectKey(PRUNED_MODEL, *KEY)])
    assert "controller" not in owner
    assert "blockOwnerDeletion" not in owner


async def test_the_namespace_of_a_dead_release_goes_to_the_other_after_the_duration_on_its_own_clock() -> None:
    twin, clock = twin_with(model()), Clock()
    dead, told = claims(twin, "blue", clock), list[ModelKey]()
    living = claims(twin, "green", clock, told)
    await dead.holder(NAMESPACE)
    assert await living.holder(NAMESPACE) == "blue"
    clock.now += 299
    await living.renew()
    assert (await living.holder(NAMESPACE), told) == ("blue", [])
    clock.now += 2
    await living.renew()
    assert (await living.holder(NAMESPACE), told) == ("", [KEY])
    # The other comes back, and finds itself deposed.
    assert await dead.holder(NAMESPACE) == "green"


async def test_whose_a_namespace_is_is_not_known_before_a_look_and_news_each_time_that_it_changes() -> None:
    twin, clock, heard = twin_with(model()), Clock(), list[str]()
    first = claims(twin, "blue", clock, news=lambda: heard.append("blue"))
    second = claims(twin, "green", clock, news=lambda: heard.append("green"))
    assert (first.is_ours(NAMESPACE), second.is_ours(NAMESPACE), heard) == (None, None, [])
    await first.holder(NAMESPACE)
    await second.holder(NAMESPACE)
    assert (first.is_ours(NAMESPACE), second.is_ours(NAMESPACE), heard) == (True, False, ["blue", "green"])
    await first.renew()
    await second.renew()
    assert heard == ["blue", "green"]
    clock.now += 301
    await second.renew()
    assert (second.is_ours(NAMESPACE), heard) == (True, ["blue", "green", "green"])


async def test_a_release_that_renews_keeps_its_namespace() -> None:
    twin, clock = twin_with(model()), Clock()
    first, second = claims(twin, "blue", clock), claims(twin, "green", clock)
    for _ in range(5):
        assert await first.holder(NAMESPACE) == ""
        assert await second.holder(NAMESPACE) == "blue"
        clock.now += 150
        await first.renew()
        await second.renew()


async def test_a_release_that_could_not_renew_writes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    twin, clock = twin_with(model()), Clock()
    first = claims(twin, "blue", clock)
    await first.holder(NAMESPACE)

    async def away(*_: object) -> Json | None:
        raise ApiFailure(0, "Unreachable", "away")

    monkeypatch.setattr(twin, "get", away)
    await first.renew()
    assert await first.holder(NAMESPACE) == ""
    clock.now += 201
    with pytest.raises(ApiFailure):
        await first.holder(NAMESPACE)


async def test_both_replicas_of_a_release_are_one_holder() -> None:
    twin, clock = twin_with(model()), Clock()
    assert await claims(twin, "blue", clock).holder(NAMESPACE) == ""
    assert await claims(twin, "blue", clock).holder(NAMESPACE) == ""


async def test_who_stands_back_says_so_once_and_writes_nothing_else() -> None:
    twin = twin_with(model())
    serving, other = operator(twin), operator(twin)
    await drive(serving, KEY, twin.advance)
    version = {key: obj["metadata"]["resourceVersion"] for key, obj in twin.objects.items()}
    writes = [(await other.stand_back(KEY, "blue")).writes for _ in range(3)]
    assert writes == [1, 0, 0]
    found = condition(twin, "ReleaseConflict")
    assert (found["status"], found["reason"]) == ("True", "HeldByOtherRelease")
    assert "the release in namespace blue" in found["message"]
    changed = {key for key, obj in twin.objects.items() if obj["metadata"]["resourceVersion"] != version[key]}
    assert changed == {ObjectKey(PRUNED_MODEL, *KEY)}
    # Who serves neither loses a word of its own nor fights about this one.
    assert ready(twin) == ("True", "AllReady")
    serving_writes = [(await serving.reconcile(KEY)).writes for _ in range(3)]
    assert serving_writes[1:] == [0, 0]


async def test_what_was_said_goes_when_the_namespace_is_served_anew() -> None:
    twin = twin_with(model())
    other = operator(twin)
    await other.stand_back(KEY, "blue")
    await drive(other, KEY, twin.advance)
    assert condition(twin, "ReleaseConflict") == {}
    assert ready(twin) == ("True", "AllReady")
