"""The list of workers of other namespaces, in a small API server in memory."""

from __future__ import annotations

import asyncio

import pytest
from premoe_operator.kube.cluster import ApiFailure
from premoe_operator.kube.kinds import CONFIG_MAP
from premoe_operator.kube.objects import ModelKey, ObjectKey
from premoe_operator.run.publisher import KEY, WorkersPublisher
from support.cluster_twin import ClusterTwin

RELEASE = "premoe"
WHERE = ObjectKey(CONFIG_MAP, RELEASE, "premoe-gateway-workers")


def twin() -> ClusterTwin:
    made = ClusterTwin()
    made.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": WHERE.name, "namespace": RELEASE}})
    return made


def publisher(cluster: ClusterTwin, models: list[ModelKey]) -> WorkersPublisher:
    return WorkersPublisher(cluster, RELEASE, WHERE.name, lambda: [(model, True) for model in models])


def published(cluster: ClusterTwin) -> list[str]:
    text: str = cluster.objects[WHERE]["data"][KEY]
    return text.splitlines()


async def test_workers_of_other_namespaces_are_listed_and_go_with_their_models() -> None:
    cluster = twin()
    models = [ModelKey("team-b", "chat"), ModelKey(RELEASE, "own"), ModelKey("team-a", "code")]
    publishes = publisher(cluster, models)
    await publishes.publish()
    assert published(cluster) == [
        "dns:///code-worker.team-a.svc:50051",
        "dns:///chat-worker.team-b.svc:50051",
    ]
    del models[0]
    await publishes.publish()
    assert published(cluster) == ["dns:///code-worker.team-a.svc:50051"]
    models.clear()
    await publishes.publish()
    assert published(cluster) == []


async def test_of_namespaces_that_nobody_has_looked_at_stays_what_is_published_and_comes_nothing() -> None:
    cluster = twin()
    ours: dict[ModelKey, bool | None] = {ModelKey("team-a", "code"): True, ModelKey("team-b", "chat"): None}
    publishes = WorkersPublisher(cluster, RELEASE, WHERE.name, ours.items)
    await publishes.publish()
    assert published(cluster) == ["dns:///code-worker.team-a.svc:50051"]
    ours[ModelKey("team-a", "code")] = None  # after a start
    await publishes.publish()
    assert published(cluster) == ["dns:///code-worker.team-a.svc:50051"]
    ours[ModelKey("team-a", "code")] = False
    ours[ModelKey("team-b", "chat")] = True
    await publishes.publish()
    assert published(cluster) == ["dns:///chat-worker.team-b.svc:50051"]


async def test_what_is_there_is_not_written_again_and_what_others_wrote_is() -> None:
    cluster = twin()
    publishes = publisher(cluster, [ModelKey("team-a", "code")])
    await publishes.publish()
    cluster.edit(WHERE, {"data": {"more": "of somebody else"}})
    cluster.calls.clear()
    await publishes.publish()
    assert cluster.calls == ["get configmaps"]
    cluster.edit(WHERE, {"data": {KEY: "dns:///evil:1\n"}})
    await publishes.publish()
    assert published(cluster) == ["dns:///code-worker.team-a.svc:50051"]
    assert cluster.objects[WHERE]["data"]["more"] == "of somebody else"


async def test_a_failure_is_said_once_and_the_next_look_mends_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = ClusterTwin()
    publishes = publisher(cluster, [ModelKey("team-a", "code")])
    for _ in range(3):
        await publishes.publish()
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "there is no ConfigMap premoe/premoe-gateway-workers; upgrade the release"
    ]
    cluster.objects = twin().objects
    caplog.clear()

    async def refuse(*arguments: object) -> None:
        raise ApiFailure(403, "Forbidden", "configmaps is forbidden")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "merge_patch", refuse)
        for _ in range(3):
            await publishes.publish()
    assert len(caplog.records) == 1
    await publishes.publish()
    assert published(cluster) == ["dns:///code-worker.team-a.svc:50051"]


async def test_news_are_published_without_being_asked() -> None:
    cluster, models = twin(), list[ModelKey]()
    publishes = publisher(cluster, models)
    keeping = asyncio.create_task(publishes.keep())
    async with asyncio.timeout(60):
        for name in ("one", "two"):
            models.append(ModelKey("team-a", name))
            publishes.news()
            while len(cluster.objects[WHERE].get("data", {}).get(KEY, "").splitlines()) < len(models):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    keeping.cancel()
