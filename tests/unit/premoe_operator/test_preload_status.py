"""What the status says of tasks to preload, and when workers are asked for it."""

from __future__ import annotations

import pytest
from premoe_operator.kinds import PRUNED_MODEL
from premoe_operator.objects import Json, ModelKey, ObjectKey
from premoe_operator.plan import PRELOAD_POLL_S
from premoe_operator.ports import PackFacts, WorkerPreload
from premoe_operator.release import Release
from support.api_faults import FactsStore, FaultyCluster, Operator, ScriptedWorkers, drive
from support.cluster_twin import MODEL_ID, NAMESPACE, ClusterTwin

KEY = ModelKey(NAMESPACE, "chat")
OBJECT = ObjectKey(PRUNED_MODEL, *KEY)
STORE = FactsStore(PackFacts(MODEL_ID, "tiny-moe", layers=4, experts=16, top_k=4, blob_bytes=8192))
RELEASE = Release.model_validate(
    {
        "workerImage": "registry.example/premoe-worker:1",
        "storeUrl": "s3://packs/premoe",
        "expertStore": {"name": "store", "namespace": "premoe"},
        "retrieval": {"name": "retrieval", "namespace": "premoe"},
    }
)
BOTH = ("sum", "c")
POLL_S = 1.0


def twin_with(*preload: str, **spec: object) -> ClusterTwin:
    """A PrunedModel that names the tasks of patterns that exist already."""
    twin = ClusterTwin()
    source = {"uri": "hf://premoe/tiny-moe", "revision": "0" * 40}
    twin.put(
        {
            "apiVersion": PRUNED_MODEL.api_version,
            "kind": PRUNED_MODEL.name,
            "metadata": {"name": "chat", "namespace": NAMESPACE},
            "spec": {"model": source, "budget": "4/8", "patterns": {"preload": list(preload)}, **spec},
        }
    )
    return twin


def operator(twin: ClusterTwin, workers: ScriptedWorkers, faulty: FaultyCluster | None = None) -> Operator:
    return Operator(twin, faulty or FaultyCluster(twin), STORE, RELEASE, NAMESPACE, workers)


async def told(twin: ClusterTwin, workers: ScriptedWorkers) -> tuple[Json | None, float | None]:
    """The status' word once all is quiet, and when the operator looks again."""
    outcome = await drive(operator(twin, workers), KEY, twin.advance)
    status = twin.objects[OBJECT]["status"]
    assert status["reason"] == "AllReady"  # whatever workers say of it
    return status.get("preload"), outcome.requeue_after_s


def said(resident: int, message: str = "", *, workers: int = 2) -> Json:
    return {"tasks": 2, "resident": resident, "workers": workers, "message": message}


ALL = WorkerPreload(BOTH, BOTH)
ONE = WorkerPreload(BOTH, ("sum",))
FULL = WorkerPreload(BOTH, ("sum",), "12 slots a layer hold 1 of 2 tasks to preload")
OLD = WorkerPreload(("c",), (), "the list before does not fit")
SILENT = WorkerPreload(problem="worker 10.0.0.1:50051 did not answer", has_answered=False)


@pytest.mark.parametrize(
    ("workers", "expected", "again_s"),
    [
        ((ALL, ALL), said(2), PRELOAD_POLL_S),
        ((ALL, ONE), said(1), POLL_S),  # at work
        ((ONE, WorkerPreload(BOTH, ("c",))), said(0), POLL_S),
        ((ALL, FULL), said(1, FULL.problem), PRELOAD_POLL_S),
        ((ALL, OLD), said(0), POLL_S),  # has not read the list yet
        ((ALL, SILENT), said(2, SILENT.problem, workers=1), PRELOAD_POLL_S),
        ((SILENT,), said(0, SILENT.problem, workers=0), PRELOAD_POLL_S),
    ],
)
async def test_what_the_status_says(workers: tuple[WorkerPreload, ...], expected: Json, again_s: float) -> None:
    scripted = ScriptedWorkers(*workers)
    assert await told(twin_with(*BOTH), scripted) == (expected, again_s)
    assert set(scripted.asked) == {(f"chat-worker.{NAMESPACE}.svc", 50051, False)}


async def test_the_same_word_is_written_once() -> None:
    twin, workers = twin_with(*BOTH), ScriptedWorkers(FULL)
    await told(twin, workers)
    quiet = FaultyCluster(twin)
    await operator(twin, workers, quiet).reconcile(KEY)
    assert quiet.calls == []


@pytest.mark.parametrize("spec", [{"workers": {"replicas": 0}}, {"suspend": True}])
async def test_without_workers_nobody_is_asked_and_nothing_is_said(spec: Json) -> None:
    twin, workers = twin_with(*BOTH), ScriptedWorkers(ALL)
    await told(twin, workers)
    asked = len(workers.asked)
    twin.edit(OBJECT, {"spec": spec})
    outcome = await drive(operator(twin, workers), KEY, twin.advance)
    assert "preload" not in twin.objects[OBJECT]["status"]
    assert outcome.requeue_after_s is None
    await operator(twin, workers).reconcile(KEY)
    assert len(workers.asked) <= asked + 1  # before the workers went


async def test_without_a_list_nobody_is_asked() -> None:
    workers = ScriptedWorkers(ALL)
    assert await told(twin_with(), workers) == (None, None)
    assert workers.asked == []


async def test_a_model_with_tls_is_asked_with_tls() -> None:
    workers = ScriptedWorkers(ALL)
    await told(twin_with(*BOTH, access={"tls": {"mode": "Mutual", "secretName": "mesh"}}), workers)
    assert {encrypted for _, _, encrypted in workers.asked} == {True}
