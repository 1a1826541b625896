"""What the status says of tasks to preload, and whom the operator asks for it, when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from premoe_operator.api.release import Release
from premoe_operator.decide.observed import PackFacts, WorkerPreload, WorkersAsked
from premoe_operator.kube.kinds import PRUNED_MODEL
from premoe_operator.kube.objects import Json, ModelKey, ObjectKey
from premoe_operator.run.preload_watch import MODELS_AT_ONCE, PreloadWatch, is_done
from support import pruned_models
from support.api_faults import FactsStore, FaultyCluster, Operator, ScriptedWorkers, drive
from support.cluster_twin import MODEL_ID, NAMESPACE, ClusterTwin
from support.fake_worker import until

KEY = ModelKey(NAMESPACE, "chat")
OBJECT = ObjectKey(PRUNED_MODEL, *KEY)
STORE = FactsStore(PackFacts(MODEL_ID, "tiny-moe", layer_experts=(16,) * 4, top_k=4, blob_bytes=8192))
RELEASE = Release.model_validate(pruned_models.RELEASE)
BOTH = ("sum", "c")
ASKED = WorkersAsked(f"chat-worker.{NAMESPACE}.svc", 50051, False, BOTH, 1)


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


async def told(twin: ClusterTwin, workers: ScriptedWorkers) -> Json | None:
    """The status' word once all is quiet."""
    await drive(operator(twin, workers), KEY, twin.advance)
    status = twin.objects[OBJECT]["status"]
    assert status["reason"] == "AllReady"  # whatever workers say of it
    found: Json | None = status.get("preload")
    return found


def said(resident: int, message: str = "", *, workers: int = 2) -> Json:
    return {"tasks": 2, "resident": resident, "workers": workers, "message": message}


ALL = WorkerPreload(BOTH, BOTH)
ONE = WorkerPreload(BOTH, ("sum",))
FULL = WorkerPreload(BOTH, ("sum",), "12 slots a layer hold 1 of 2 tasks to preload")
OLD = WorkerPreload(("c",), (), "the list before does not fit")
SILENT = WorkerPreload(problem="worker 10.0.0.1:50051 did not answer", has_answered=False)


@pytest.mark.parametrize(
    ("workers", "expected", "done"),
    [
        ((ALL, ALL), said(2), True),
        ((ALL, ONE), said(1), False),
        ((ONE, WorkerPreload(BOTH, ("c",))), said(0), False),
        ((ALL, FULL), said(1, FULL.problem), False),
        ((ALL, OLD), said(0), False),  # has not read the list yet
        ((ALL, SILENT), said(2, SILENT.problem, workers=1), False),
        ((SILENT,), said(0, SILENT.problem, workers=0), False),
    ],
)
async def test_what_the_status_says(workers: tuple[WorkerPreload, ...], expected: Json, done: bool) -> None:
    scripted = ScriptedWorkers(*workers)
    assert await told(twin_with(*BOTH), scripted) == expected
    assert scripted.asked == ASKED
    assert is_done(workers, BOTH) is done


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
    twin.edit(OBJECT, {"spec": spec})
    await drive(operator(twin, workers), KEY, twin.advance)
    assert "preload" not in twin.objects[OBJECT]["status"]
    assert workers.asked is None


async def test_without_a_list_and_after_the_model_nobody_is_asked() -> None:
    workers = ScriptedWorkers(ALL)
    assert await told(twin_with(), workers) is None
    assert workers.asked is None
    twin = twin_with(*BOTH)
    await told(twin, workers)
    assert workers.asked == ASKED
    twin.remove(OBJECT)
    await operator(twin, workers).reconcile(KEY)
    assert workers.asked is None


async def test_a_model_with_tls_is_asked_with_tls() -> None:
    workers = ScriptedWorkers(ALL)
    await told(twin_with(*BOTH, access={"tls": {"mode": "Mutual", "secretName": "mesh"}}), workers)
    assert workers.asked == ASKED._replace(encrypted=True)


class Workers:
    """Say what they are told to, when a test lets them answer."""

    def __init__(self) -> None:
        self.said: tuple[WorkerPreload, ...] = (ONE,)
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def preloads(self, host: str, port: int, *, encrypted: bool) -> tuple[WorkerPreload, ...]:
        self.asked.append(host)
        await self.may_answer.wait()
        return self.said


@asynccontextmanager
async def watching(workers: Workers) -> AsyncIterator[tuple[PreloadWatch, list[ModelKey]]]:
    """A watch, and the models that it calls changed."""
    changed: list[ModelKey] = []
    watch = PreloadWatch(workers, changed.append, soon_s=0.01)
    try:
        yield watch, changed
    finally:
        await watch.close()


async def test_the_watch_asks_soon_while_something_is_missing_and_tells_news_once() -> None:
    workers = Workers()
    async with watching(workers) as (watch, changed):
        assert watch.look(KEY, ASKED) is None
        await until(lambda: len(workers.asked) >= 5)
        assert changed == [KEY]
        assert watch.look(KEY, ASKED) == (ONE,)
        workers.said = (ALL,)
        await until(lambda: changed == [KEY, KEY])
        assert watch.look(KEY, ASKED) == (ALL,)
        asked = len(workers.asked)
        await asyncio.sleep(0.1)
        assert len(workers.asked) == asked  # the next look is minutes away


async def test_a_changed_question_is_asked_at_once_and_the_old_answer_forgotten() -> None:
    workers = Workers()
    workers.said = (ALL,)
    async with watching(workers) as (watch, changed):
        watch.look(KEY, ASKED)
        await until(lambda: changed == [KEY])
        assert watch.look(KEY, ASKED._replace(ready=2)) is None
        await until(lambda: changed == [KEY, KEY])
        assert watch.look(KEY, ASKED._replace(ready=2)) == (ALL,)
        assert watch.look(KEY, None) is None


async def test_workers_that_do_not_answer_hold_nobody_up_and_are_left_in_the_end() -> None:
    workers = Workers()
    workers.may_answer.clear()
    async with watching(workers) as (watch, changed):
        for number in range(20):
            assert watch.look(ModelKey(NAMESPACE, f"m{number}"), ASKED) is None
        await until(lambda: len(workers.asked) == MODELS_AT_ONCE)
        workers.may_answer.set()
        await until(lambda: len(changed) == 20)
    asked = len(workers.asked)
    await asyncio.sleep(0.05)
    assert len(workers.asked) == asked
