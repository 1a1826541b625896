"""Another revision or uri under the same name: prepared beside what serves, which goes on whatever fails."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from premoe_operator.decide.observed import PackFacts
from premoe_operator.kube.kinds import DEPLOYMENT, JOB, PRUNED_MODEL, SERVICE_ACCOUNT
from premoe_operator.kube.objects import Json, ObjectKey
from support.api_faults import FactsStore, FaultyCluster, Operator, drive
from support.cluster_twin import MODEL_ID, NAMESPACE
from support.served_models import FACTS, KEY, RELEASE, TASKS, condition, model, ready, twin_with

NEW_ID = "blake3:" + "ef" * 32
NEW_FACTS = replace(FACTS, model_id=NEW_ID)
OLD = {"uri": "hf://premoe/tiny-moe", "revision": "0" * 40}
CHANGES: dict[str, Json] = {
    "revision": {"revision": "1" * 40},
    "uri": {"uri": "s3://models/other", "revision": None},
}


class Life:
    """A PrunedModel that serves, and its operator."""

    def __init__(self, **spec: Any) -> None:
        self.twin = twin_with(model(**spec))
        self.store = FactsStore(FACTS)
        self.operator = Operator(self.twin, FaultyCluster(self.twin), self.store, RELEASE, NAMESPACE)

    async def started(self) -> Life:
        await drive(self.operator, KEY, self.twin.advance)
        assert ready(self.twin) == ("True", "AllReady")
        assert (self.status["servingModelId"], self.status["resolved"]["modelId"]) == (MODEL_ID, MODEL_ID)
        return self

    async def change(self, source: Json, facts: PackFacts = NEW_FACTS) -> None:
        self.store.answer = facts
        self.twin.edit(ObjectKey(PRUNED_MODEL, *KEY), {"spec": {"model": source}})
        await self.settle()

    async def settle(self) -> None:
        await drive(self.operator, KEY, lambda: None)

    def job(self, component: str) -> Json:
        """The one that has not ended."""
        (found,) = [job for job in self.jobs(component) if not job.get("status", {}).get("conditions")]
        return found

    def jobs(self, component: str) -> list[Json]:
        found = self.twin.of_kind(JOB)
        return [job for job in found if job["metadata"]["labels"]["app.kubernetes.io/component"] == component]

    async def end(self, component: str, words: Json | None = None, exit_code: int = 0) -> None:
        self.twin.finish(self.job(component), words, exit_code)
        await self.settle()

    @property
    def status(self) -> Json:
        status = self.twin.objects[ObjectKey(PRUNED_MODEL, *KEY)]["status"]
        assert isinstance(status, dict)
        return status

    @property
    def deployment(self) -> Json:
        return self.twin.objects[ObjectKey(DEPLOYMENT, NAMESPACE, "chat-worker")]

    @property
    def message(self) -> str:
        return str(condition(self.twin, "Ready")["message"])


def args(job: Json) -> list[str]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return list(container["args"])


@pytest.mark.parametrize("change", CHANGES)
async def test_another_source_is_packed_and_profiled_before_workers_move(change: str) -> None:
    life = await Life(patterns={"tasks": TASKS}).started()
    before = copy.deepcopy(life.deployment["spec"])
    await life.change(CHANGES[change])
    assert "--expect" not in args(life.job("pack"))  # other content is what was asked for
    assert ready(life.twin) == ("False", "Packing")
    assert life.message == f"the checkpoint is being packed; workers serve {MODEL_ID} meanwhile"
    await life.end("pack", {"modelId": NEW_ID})
    assert ready(life.twin) == ("False", "Profiling")
    assert (life.status["servingModelId"], life.status["resolved"]["modelId"]) == (MODEL_ID, NEW_ID)
    await life.end("profile")
    assert ready(life.twin) == ("False", "BuildingPatterns")
    assert life.deployment["spec"] == before
    assert condition(life.twin, "Available")["status"] == "True"
    await life.end("patterns")
    assert life.deployment["spec"] != before
    # One new worker beside the old one, which goes when the new one is ready.
    counts = {"replicas": 2, "readyReplicas": 1, "updatedReplicas": 1}
    seen = {"observedGeneration": life.deployment["metadata"]["generation"], **counts}
    life.twin.edit(ObjectKey(DEPLOYMENT, NAMESPACE, "chat-worker"), {"status": seen})
    await life.settle()
    assert life.status["servingModelId"] == MODEL_ID
    await drive(life.operator, KEY, life.twin.advance)
    assert ready(life.twin) == ("True", "AllReady")
    assert (life.status["servingModelId"], life.status["resolved"]["modelId"]) == (NEW_ID, NEW_ID)
    assert "meanwhile" not in life.message
    assert [len(life.jobs(component)) for component in ("pack", "profile", "patterns")] == [1, 1, 1]


@pytest.mark.parametrize(
    "spec", [{"budget": "4/32"}, {"workers": {"resources": {"limits": {"memory": "300Mi"}}}}], ids=["budget", "memory"]
)
async def test_what_suits_the_new_pack_is_not_judged_by_the_old_one(spec: Json) -> None:
    life = Life(engine={"device": "cpu"})
    life.store.answer = replace(FACTS, blob_bytes=16 << 20)
    await life.started()
    life.store.answer = replace(NEW_FACTS, layer_experts=(64,) * 4)
    life.twin.edit(ObjectKey(PRUNED_MODEL, *KEY), {"spec": {"model": CHANGES["uri"], **spec}})
    await life.settle()
    assert condition(life.twin, "SpecAccepted")["status"] == "True"
    assert ready(life.twin) == ("False", "Packing")
    await life.end("pack", {"modelId": NEW_ID})
    assert ready(life.twin) == ("False", "RollingOut")


async def end_pack(life: Life) -> None:
    await life.end("pack", {"reason": "SOURCE_NOT_FOUND", "message": "no such revision"}, exit_code=3)


async def end_profile(life: Life) -> None:
    await life.end("pack", {"modelId": NEW_ID})
    await life.end("profile", {"reason": "OUT_OF_MEMORY", "message": "no room"}, exit_code=1)


async def end_patterns(life: Life) -> None:
    await life.end("pack", {"modelId": NEW_ID})
    await life.end("profile")
    await life.end("patterns", {"reason": "SET", "message": "no set"}, exit_code=1)


async def no_facts(life: Life) -> None:
    await life.end("pack", {"modelId": NEW_ID})


@pytest.mark.parametrize(
    ("fail", "facts", "reason"),
    [
        (end_pack, NEW_FACTS, "PackFailed"),
        (end_profile, NEW_FACTS, "ProfileFailed"),
        (end_patterns, NEW_FACTS, "PatternsFailed"),
        (no_facts, replace(NEW_FACTS, layer_experts=(6,) * 4), "BudgetImpossible"),
    ],
)
async def test_a_failure_leaves_the_old_one_serving_and_going_back_redoes_no_pack(
    fail: Any, facts: PackFacts, reason: str
) -> None:
    life = await Life(patterns={"tasks": TASKS}).started()
    before, (packed,) = copy.deepcopy(life.deployment), life.jobs("pack")
    await life.change(CHANGES["revision"], facts)
    await fail(life)
    assert ready(life.twin) == ("False", reason)
    assert life.message.endswith(f"; workers serve {MODEL_ID} meanwhile")
    assert condition(life.twin, "Available")["status"] == "True"
    assert life.deployment == before
    assert life.status["servingModelId"] == MODEL_ID
    await life.change(OLD, FACTS)
    assert condition(life.twin, "ArtifactsReady")["status"] == "True"
    await drive(life.operator, KEY, life.twin.advance)
    assert ready(life.twin) == ("True", "AllReady")
    assert life.deployment["spec"] == before["spec"]
    assert [job["metadata"]["uid"] for job in life.jobs("pack")] == [packed["metadata"]["uid"]]


async def test_workers_that_do_not_start_leave_the_old_ones() -> None:
    life = await Life().started()
    await life.change(CHANGES["revision"])
    await life.end("pack", {"modelId": NEW_ID})
    rolling = life.deployment
    assert rolling["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    counts = {"replicas": 2, "readyReplicas": 1, "updatedReplicas": 1, "conditions": [late]}
    seen = {"observedGeneration": rolling["metadata"]["generation"], **counts}
    life.twin.edit(ObjectKey(DEPLOYMENT, NAMESPACE, "chat-worker"), {"status": seen})
    await life.settle()
    assert ready(life.twin) == ("False", "ProgressDeadlineExceeded")
    assert life.message.endswith(f"; workers serve {MODEL_ID} meanwhile")
    assert life.status["servingModelId"] == MODEL_ID
    await life.change(OLD, FACTS)
    await drive(life.operator, KEY, life.twin.advance)
    assert (ready(life.twin), life.status["servingModelId"]) == (("True", "AllReady"), MODEL_ID)


async def test_the_new_content_is_held_on_to_like_the_first() -> None:
    """What a source packs to may not change under its name."""
    life = await Life().started()
    await life.change(CHANGES["revision"])
    await life.end("pack", {"modelId": NEW_ID})
    await drive(life.operator, KEY, life.twin.advance)
    life.twin.edit(ObjectKey(PRUNED_MODEL, *KEY), {"metadata": {"annotations": {"premoe.dev/retry": "1"}}})
    await life.settle()
    again = args(life.job("pack"))
    assert again[again.index("--expect") + 1] == NEW_ID


async def test_children_of_the_old_template_outlive_its_workers() -> None:
    life = await Life().started()
    account = ObjectKey(SERVICE_ACCOUNT, NAMESPACE, "chat-worker")
    life.twin.edit(ObjectKey(PRUNED_MODEL, *KEY), {"spec": {"workers": {"serviceAccountName": "own"}}})
    await life.operator.reconcile(KEY)
    assert life.deployment["spec"]["template"]["spec"]["serviceAccountName"] == "own"
    assert account in life.twin.objects
    await drive(life.operator, KEY, life.twin.advance)
    assert account not in life.twin.objects
