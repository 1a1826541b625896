"""A served name passes from an older PrunedModel to a younger one that names it: never to nobody, never by accident."""

from __future__ import annotations

from typing import Any

import pytest
from premoe_operator.kube.kinds import DEPLOYMENT, PRUNED_MODEL
from premoe_operator.kube.objects import Json, ModelKey, ObjectKey
from support.api_faults import FactsStore, FaultyCluster, Operator, drive
from support.cluster_twin import NAMESPACE, ClusterTwin
from support.served_models import FACTS, RELEASE, model, ready

WAIT_S = RELEASE.drain.pre_stop_seconds + RELEASE.drain.delay_seconds


def served(name: str, *, after: str = "", namespace: str = NAMESPACE, **spec: Any) -> Json:
    """One that wants the name chat."""
    source = {"uri": "s3://models/tiny", "servedName": "chat", **({"takesOverFrom": after} if after else {})}
    made = model(name, **{"model": source, **spec})
    return {**made, "metadata": {**made["metadata"], "namespace": namespace}}


class Namespace:
    """PrunedModels, their operator, and a clock that stands."""

    def __init__(self, *models: Json) -> None:
        self.twin = ClusterTwin()
        self.seconds = 0
        self.operator = Operator(
            self.twin, FaultyCluster(self.twin), FactsStore(FACTS), RELEASE, NAMESPACE, now=self._now
        )
        for each in models:
            self.twin.put(each)

    def _now(self) -> str:
        return f"2026-01-01T00:{self.seconds // 60:02d}:{self.seconds % 60:02d}Z"

    async def drive(self, *names: str, workers_start: bool = True) -> None:
        for name in names:
            key = ModelKey(NAMESPACE, name)
            await drive(self.operator, key, self.twin.advance if workers_start else lambda: None)

    async def wait(self, *names: str) -> None:
        """The time after which callers know the workers of a new one."""
        self.seconds += WAIT_S
        await self.drive(*names)

    async def handed_over(self) -> Namespace:
        await self.drive("blue", "green")
        await self.wait("blue", "green")
        assert (self.workers("blue"), self.workers("green")) == (0, 1)
        return self

    def workers(self, name: str) -> int:
        found = self.twin.objects.get(ObjectKey(DEPLOYMENT, NAMESPACE, f"{name}-worker"))
        return -1 if found is None else int(found["spec"]["replicas"])

    def deployment(self, name: str) -> Json:
        return self.twin.objects[ObjectKey(DEPLOYMENT, NAMESPACE, f"{name}-worker")]

    def ready(self, name: str) -> tuple[str, str]:
        return ready(self.twin, name)

    def status(self, name: str) -> Json:
        status = self.twin.objects[ObjectKey(PRUNED_MODEL, NAMESPACE, name)]["status"]
        assert isinstance(status, dict)
        return status

    def edit(self, name: str, spec: Json) -> None:
        self.twin.edit(ObjectKey(PRUNED_MODEL, NAMESPACE, name), {"spec": spec})


async def test_the_older_one_serves_until_callers_know_the_younger_one() -> None:
    site = Namespace(served("blue"), served("green", after="blue"))
    await site.drive("blue")
    await site.drive("green", workers_start=False)
    assert (site.workers("blue"), site.workers("green")) == (1, -1)
    outcome = await site.operator.reconcile(ModelKey(NAMESPACE, "blue"))
    assert outcome.requeue_after_s == 1.0  # no watch tells it what this operator wrote about the other one
    await site.drive("green")
    assert (site.ready("blue"), site.ready("green")) == (("True", "AllReady"),) * 2
    site.seconds += WAIT_S - 1
    outcome = await site.operator.reconcile(ModelKey(NAMESPACE, "blue"))
    assert (site.workers("blue"), outcome.requeue_after_s) == (1, 1.0)  # it looks again by itself
    site.seconds += 1
    await site.drive("blue")
    assert (site.workers("blue"), site.workers("green")) == (0, 1)
    assert (site.ready("blue"), site.ready("green")) == (("True", "HandedOver"), ("True", "AllReady"))
    status = site.status("blue")
    assert (status["handedOver"]["name"], status["workersSummary"]) == ("green", "0/0")
    available = next(each for each in status["conditions"] if each["type"] == "Available")
    assert (available["status"], available["reason"]) == ("False", "HandedOver")
    site.twin.remove(ObjectKey(PRUNED_MODEL, NAMESPACE, "blue"))
    await site.drive("green")
    assert site.ready("green") == ("True", "AllReady")


async def test_a_younger_one_that_never_gets_ready_changes_nothing() -> None:
    site = Namespace(served("blue"), served("green", after="blue", budget="4/999"))
    await site.drive("blue", "green")
    await site.wait("blue", "green")
    assert site.ready("green") == ("False", "BudgetImpossible")
    assert (site.workers("blue"), site.ready("blue")) == (1, ("True", "AllReady"))


async def test_a_younger_one_without_workers_does_not_take_over() -> None:
    site = Namespace(served("blue"), served("green", after="blue", workers={"replicas": 0}))
    await site.drive("blue", "green")
    await site.wait("blue", "green")
    assert site.ready("green") == ("True", "ScaledToZero")
    assert site.workers("blue") == 1


async def test_trouble_of_the_younger_one_brings_nobody_back_by_itself() -> None:
    """Workers that go and come would be worse than those that a rollout is about to bring back."""
    site = await Namespace(served("blue"), served("green", after="blue")).handed_over()
    site.edit("green", {"engine": {"maxSequences": 3}})
    await site.drive("green", workers_start=False)
    assert site.ready("green")[0] == "False"
    await site.wait("blue")
    assert site.workers("blue") == 0


@pytest.mark.parametrize("how", ["delete", "suspend", "rename", "recreate"])
async def test_the_older_one_comes_back_when_the_younger_one_is_taken_away(how: str) -> None:
    site = await Namespace(served("blue"), served("green", after="blue")).handed_over()
    key = ObjectKey(PRUNED_MODEL, NAMESPACE, "green")
    if how in ("delete", "recreate"):
        site.twin.remove(key)
    if how == "recreate":
        site.twin.put(served("green", after="blue"))
    if how == "suspend":
        site.edit("green", {"suspend": True})
    if how == "rename":
        site.edit("green", {"model": {"servedName": "other"}})
    await site.drive("blue")
    assert (site.workers("blue"), site.ready("blue")) == (1, ("True", "AllReady"))
    assert "handedOver" not in site.status("blue")


async def test_back_without_a_gap() -> None:
    """A younger one that names nobody any more keeps its workers, so both serve until it is deleted."""
    site = await Namespace(served("blue"), served("green", after="blue")).handed_over()
    site.edit("green", {"model": {"takesOverFrom": None}})
    await site.drive("blue", "green")
    assert site.ready("green") == ("False", "ServedNameConflict")
    assert (site.workers("blue"), site.workers("green")) == (1, 1)
    assert site.ready("blue") == ("True", "AllReady")


async def test_a_third_follows_the_second() -> None:
    site = await Namespace(served("blue"), served("green", after="blue")).handed_over()
    site.twin.put(served("red", after="green"))
    await site.drive("red")
    assert site.ready("red") == ("True", "AllReady")  # the first of the line is no obstacle
    await site.wait("blue", "green", "red")
    assert [site.workers(name) for name in ("blue", "green", "red")] == [0, 0, 1]


class Line(Namespace):
    """Blue, green after it, red after that, which has the name now."""

    names = ("blue", "green", "red")

    async def passed_on(self) -> Line:
        await self.handed_over()
        self.twin.put(served("red", after="green"))
        await self.drive("red")
        await self.wait("green", "blue", "red")
        assert self.numbers == (0, 0, 1)
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(self.workers(name) for name in self.names)

    async def settle(self) -> None:
        for _ in range(2):
            await self.drive(*(name for name in self.names if ObjectKey(PRUNED_MODEL, NAMESPACE, name) in self.present))

    @property
    def present(self) -> set[ObjectKey]:
        return set(self.twin.objects)

    def delete(self, name: str) -> None:
        self.twin.remove(ObjectKey(PRUNED_MODEL, NAMESPACE, name))


def line() -> Line:
    return Line(served("blue"), served("green", after="blue"))


async def test_the_first_of_a_line_stays_away_while_the_third_serves_and_the_second_is_suspended() -> None:
    site = await line().passed_on()
    site.edit("green", {"suspend": True})
    await site.settle()
    assert (site.numbers, site.ready("red")) == ((0, 0, 1), ("True", "AllReady"))
    assert site.status("blue")["handedOver"]["name"] == "red"
    site.edit("red", {"engine": {"maxSequences": 3}})
    await site.drive("red", "blue", workers_start=False)
    assert site.ready("red")[0] == "False"
    assert site.workers("blue") == 0  # trouble of red brings nobody back
    site.edit("red", {"suspend": True})
    await site.settle()
    assert (site.numbers, site.ready("blue")) == ((1, 0, 0), ("True", "AllReady"))


async def test_the_first_of_a_line_stays_away_while_the_third_serves_and_the_second_is_deleted() -> None:
    site = await line().passed_on()
    site.delete("green")
    await site.settle()
    assert (site.numbers, site.ready("red")) == ((0, -1, 1), ("True", "AllReady"))
    site.edit("red", {"model": {"takesOverFrom": "blue"}})  # as it should say now
    await site.settle()
    assert (site.numbers, site.ready("red")) == ((0, -1, 1), ("True", "AllReady"))
    site.delete("red")
    await site.settle()
    assert (site.numbers, site.ready("blue")) == ((1, -1, -1), ("True", "AllReady"))


async def test_the_way_back_is_open_when_the_second_of_a_line_is_gone() -> None:
    site = await line().passed_on()
    site.delete("green")
    await site.settle()
    site.edit("red", {"model": {"takesOverFrom": None}})
    await site.settle()
    assert (site.numbers, site.ready("red")) == ((1, -1, 1), ("False", "ServedNameConflict"))


async def test_the_second_of_a_line_gets_the_name_back_and_not_the_first() -> None:
    site = await line().passed_on()
    site.delete("red")
    await site.settle()
    assert (site.numbers, site.ready("green")) == ((0, 1, -1), ("True", "AllReady"))
    assert site.status("blue")["handedOver"]["name"] == "green"


async def test_a_third_that_has_never_served_keeps_nobody_away() -> None:
    site = await line().handed_over()
    site.twin.put(served("red", after="green", budget="4/999"))
    await site.drive("red")
    site.edit("green", {"suspend": True})
    await site.drive("green", "blue", "red")
    assert (site.workers("blue"), site.ready("blue")) == (1, ("True", "AllReady"))


async def test_an_older_one_whose_spec_is_refused_stops_and_comes_back_on_the_template_in_use() -> None:
    site = Namespace(served("blue"), served("green", after="blue"))
    await site.drive("blue", "green")
    template = site.deployment("blue")["spec"]["template"]
    children = {key for key in site.twin.objects if key.name.startswith("blue")}
    site.edit("blue", {"podTemplate": {"spec": {"dnsPolicy": "Default"}}, "patterns": {"tasks": []}})
    await site.wait("blue", "green")
    await site.drive("blue")
    assert site.ready("blue") == ("False", "PodTemplateRefused")
    assert (site.workers("blue"), site.status("blue")["readyReplicas"]) == (0, 0)
    assert site.status("blue")["handedOver"]["name"] == "green"
    assert children <= set(site.twin.objects)
    site.twin.remove(ObjectKey(PRUNED_MODEL, NAMESPACE, "green"))
    await site.drive("blue")
    assert (site.workers("blue"), site.status("blue")["readyReplicas"]) == (1, 1)
    assert site.deployment("blue")["spec"]["template"] == template
    site.edit("blue", {"workers": {"replicas": 2}})
    await site.drive("blue")
    assert site.workers("blue") == 1  # otherwise a refused spec changes nothing


async def test_one_that_is_refused_for_its_name_does_not_come_back_beside_who_has_it() -> None:
    site = await Namespace(served("blue"), served("green", after="blue")).handed_over()
    site.twin.put(served("red", after="green"))
    await site.drive("red")
    await site.wait("green", "red")
    site.edit("green", {"model": {"takesOverFrom": None}})
    await site.drive("green")
    site.twin.remove(ObjectKey(PRUNED_MODEL, NAMESPACE, "red"))
    await site.drive("blue", "green")
    assert site.ready("green") == ("False", "ServedNameConflict")
    assert (site.workers("blue"), site.workers("green")) == (1, 0)


async def test_of_two_that_want_to_follow_the_older_one_does() -> None:
    site = Namespace(served("blue"), served("green", after="blue"), served("red", after="blue"))
    await site.drive("blue", "green", "red")
    await site.wait("blue", "green", "red")
    assert site.ready("red") == ("False", "ServedNameConflict")
    assert [site.workers(name) for name in ("blue", "green", "red")] == [0, 1, -1]


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        (served("blue"), served("green"), "green"),
        (served("blue"), served("green", after="other"), "green"),
        # The older one cannot follow the younger one, so that no two can wait for each other.
        (served("blue", after="green"), served("green"), "green"),
        (served("green", namespace="other"), served("blue", after="green"), "blue"),
    ],
)
async def test_a_name_is_not_taken_otherwise(first: Json, second: Json, refused: str) -> None:
    site = Namespace(first, second)
    for found in site.twin.of_kind(PRUNED_MODEL):
        site.operator.cache.put(found)  # of the other namespace too
    own = [each["metadata"]["name"] for each in (first, second) if each["metadata"]["namespace"] == NAMESPACE]
    await site.drive(*own)
    await site.wait(*own)
    assert site.ready(refused) == ("False", "ServedNameConflict")
    conditions = site.status(refused)["conditions"]
    assert "takesOverFrom" in next(each["message"] for each in conditions if each["type"] == "Ready")
