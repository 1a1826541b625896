"""Reconciles against the in-memory API: the whole way, crashes at every call, drift and edits in any order."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from premoe_operator.kube.kinds import CONFIG_MAP, DEPLOYMENT, JOB, PRUNED_MODEL, REVISION, SERVICE
from premoe_operator.kube.objects import Json, ObjectKey, key_of, uid_of
from support.api_faults import Crash, FaultyCluster, When, drive
from support.cluster_twin import NAMESPACE, ClusterTwin
from support.served_models import KEY, RELEASE, TASKS, condition, model, operator, ready, twin_with


def inventory(twin: ClusterTwin) -> set[str]:
    return {f"{obj['kind']}/{obj['metadata']['name']}" for obj in twin.children(KEY)}


async def test_converges_and_then_calls_nothing() -> None:
    twin = twin_with(model(patterns={"tasks": TASKS}))
    life = operator(twin)
    await drive(life, KEY, twin.advance)
    assert ready(twin) == ("True", "AllReady")
    status = twin.objects[ObjectKey(PRUNED_MODEL, *KEY)]["status"]
    assert status["patternsSummary"] == "2/2"
    assert status["resolved"]["residentBytes"] == 4 * 10 * 8192
    quiet = FaultyCluster(twin)
    second = operator(twin, quiet)
    assert (await second.reconcile(KEY)).requeue_after_s is None
    assert quiet.calls == []


async def test_what_follows_from_a_finished_pack_is_written_before_the_status_is_said() -> None:
    twin = twin_with(model())
    await operator(twin).reconcile(KEY)
    twin.advance()
    counted = FaultyCluster(twin)
    outcome = await operator(twin, counted).reconcile(KEY)
    writes = [call for call in counted.calls if not call.startswith(("list ", "get "))]
    assert writes == ["patch jobs", "create ControllerRevision", "create Deployment", "apply_status", "create Event"]
    assert (outcome.writes, outcome.again) == (4, False)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_any_call_of_create_leaves_the_same(when: When) -> None:
    calm = twin_with(model(patterns={"tasks": TASKS}))
    counter = FaultyCluster(calm)
    await drive(operator(calm, counter), KEY, calm.advance)
    assert len(counter.calls) > 20
    for at in range(1, len(counter.calls) + 1):
        twin = twin_with(model(patterns={"tasks": TASKS}))
        with pytest.raises(Crash):
            await drive(operator(twin, FaultyCluster(twin, at=at, when=when)), KEY, twin.advance)
        await drive(operator(twin), KEY, twin.advance)
        assert ready(twin) == ("True", "AllReady"), f"crash {when} call {at}"
        assert inventory(twin) == inventory(calm), f"crash {when} call {at}"


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_any_call_of_a_rollout_leaves_the_same(when: When) -> None:
    edit = {"spec": {"engine": {"maxSequences": 3}, "workers": {"replicas": 2}, "patterns": {"tasks": TASKS[:1]}}}
    before = twin_with(model(patterns={"tasks": TASKS}))
    await drive(operator(before), KEY, before.advance)
    calm = copy.deepcopy(before)
    calm.edit(ObjectKey(PRUNED_MODEL, *KEY), edit)
    counter = FaultyCluster(calm)
    await drive(operator(calm, counter), KEY, calm.advance)
    for at in range(1, len(counter.calls) + 1):
        twin = copy.deepcopy(before)
        twin.edit(ObjectKey(PRUNED_MODEL, *KEY), edit)
        with pytest.raises(Crash):
            await drive(operator(twin, FaultyCluster(twin, at=at, when=when)), KEY, twin.advance)
        await drive(operator(twin), KEY, twin.advance)
        assert ready(twin) == ("True", "AllReady")
        assert inventory(twin) == inventory(calm)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
async def test_deleted_and_recreated_at_any_call(when: When) -> None:
    calm = twin_with(model())
    counter = FaultyCluster(calm)
    await drive(operator(calm, counter), KEY, calm.advance)
    for at in range(1, len(counter.calls) + 1):
        twin = twin_with(model())
        life = operator(twin, FaultyCluster(twin, at=at, when=when))
        with pytest.raises(Crash):
            await drive(life, KEY, twin.advance)
        # Garbage collection lags: the children of the first are still there when the second comes.
        first = twin.objects.pop(ObjectKey(PRUNED_MODEL, *KEY))
        leftovers = [child for child in twin.objects.values() if first["metadata"]["uid"] in str(child["metadata"])]
        twin.put(model())
        await operator(twin).reconcile(KEY)
        assert all(twin.objects[key_of(child)] == child for child in leftovers)
        for child in leftovers:
            del twin.objects[key_of(child)]
        await drive(operator(twin), KEY, twin.advance)
        assert ready(twin) == ("True", "AllReady")
        assert inventory(twin) == inventory(calm)


CHANGES: list[Json] = [
    {"spec": {"workers": {"replicas": 3}}},
    {"spec": {"workers": {"replicas": 0}}},
    {"spec": {"suspend": True}},
    {"spec": {"suspend": False}},
    {"spec": {"engine": {"maxSequences": 2}}},
    {"spec": {"engine": {"image": "registry.example/other:2"}}},
    {"spec": {"workers": {"rollout": {"revision": "a"}}}},
    {"spec": {"patterns": {"tasks": TASKS}}},
    {"spec": {"patterns": {"tasks": []}}},
    {"spec": {"access": {"networkPolicy": "None"}}},
    {"spec": {"workers": {"serviceAccountName": "own"}}},
    {"spec": {"budget": "4/16"}},
    {"spec": {"model": {"revision": "1" * 40}}},
    {"metadata": {"annotations": {"premoe.dev/retry": "1"}}},
]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(CHANGES), st.sampled_from(["", "delete", "label", "owner"])), max_size=5))
async def test_after_any_edits_and_drift_the_plan_is_empty(steps: list[tuple[Json, str]]) -> None:
    twin = twin_with(model())
    for edit, drift in steps:
        twin.edit(ObjectKey(PRUNED_MODEL, *KEY), edit)
        life = operator(twin)
        await drive(life, KEY, twin.advance)
        for child in list(twin.children(KEY)):
            if drift == "delete":
                twin.remove(key_of(child))
            elif drift == "label":
                twin.edit(key_of(child), {"metadata": {"labels": {"premoe.dev/model": None}}})
            elif drift == "owner":
                twin.edit(key_of(child), {"metadata": {"ownerReferences": None}})
        await drive(life, KEY, twin.advance)
    await drive(operator(twin), KEY, twin.advance)
    spec = twin.objects[ObjectKey(PRUNED_MODEL, *KEY)]["spec"]
    if not spec.get("suspend"):
        assert ready(twin)[0] == "True"


async def test_foreign_objects_are_left_alone() -> None:
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat-worker", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "other"}},
    }
    twin = twin_with(foreign, model())
    before = copy.deepcopy(twin.objects[ObjectKey(SERVICE, NAMESPACE, "chat-worker")])
    life = operator(twin)
    outcome = await drive(life, KEY, twin.advance)
    assert ready(twin) == ("False", "ForeignObject")
    assert twin.objects[ObjectKey(SERVICE, NAMESPACE, "chat-worker")] == before
    assert outcome.requeue_after_s == 1.0
    twin.remove(ObjectKey(SERVICE, NAMESPACE, "chat-worker"))
    await drive(life, KEY, twin.advance)
    assert ready(twin) == ("True", "AllReady")


async def test_a_newer_operator_restarts_nothing() -> None:
    twin = twin_with(model())
    await drive(operator(twin), KEY, twin.advance)
    deployment = copy.deepcopy(twin.objects[ObjectKey(DEPLOYMENT, NAMESPACE, "chat-worker")])
    newer = RELEASE.model_copy(update={"worker_image": "registry.example/premoe-worker:2"})
    await drive(operator(twin, release=newer), KEY, twin.advance)
    assert twin.objects[ObjectKey(DEPLOYMENT, NAMESPACE, "chat-worker")] == deployment
    assert condition(twin, "TemplateOutdated")["status"] == "True"
    assert ready(twin) == ("True", "AllReady")
    for revision in twin.of_kind(REVISION):  # even without its memory
        twin.remove(key_of(revision))
    await drive(operator(twin, release=newer), KEY, twin.advance)
    assert twin.objects[ObjectKey(DEPLOYMENT, NAMESPACE, "chat-worker")]["spec"] == deployment["spec"]
    twin.edit(ObjectKey(PRUNED_MODEL, *KEY), {"spec": {"workers": {"rollout": {"revision": "now"}}}})
    await drive(operator(twin, release=newer), KEY, twin.advance)
    rolled = twin.objects[ObjectKey(DEPLOYMENT, NAMESPACE, "chat-worker")]
    assert rolled["spec"]["template"]["spec"]["containers"][0]["image"].endswith(":2")
    assert condition(twin, "TemplateOutdated")["status"] == "False"


async def test_a_lost_result_is_computed_again() -> None:
    twin = twin_with(model())
    life = operator(twin)
    await life.reconcile(KEY)
    (job,) = twin.of_kind(JOB)
    twin.advance()
    twin.objects = {key: obj for key, obj in twin.objects.items() if key.kind.name != "Pod"}
    await drive(life, KEY, twin.advance)
    assert ready(twin) == ("True", "AllReady")
    assert uid_of(twin.of_kind(JOB)[0]) != uid_of(job)


async def test_a_failed_pack_keeps_what_runs_and_is_retried_on_demand() -> None:
    twin = twin_with(model())
    life = operator(twin)
    await drive(life, KEY, twin.advance)
    deployment = uid_of(twin.objects[ObjectKey(DEPLOYMENT, NAMESPACE, "chat-worker")])
    twin.edit(ObjectKey(PRUNED_MODEL, *KEY), {"metadata": {"annotations": {"premoe.dev/retry": "1"}}})
    await life.reconcile(KEY)
    (job,) = [job for job in twin.of_kind(JOB) if "status" not in job]
    twin.finish(job, {"reason": "SOURCE_NOT_FOUND", "message": "revision 000 does not exist"}, exit_code=3)
    await drive(life, KEY, lambda: None)
    assert ready(twin) == ("False", "PackFailed")
    status = twin.objects[ObjectKey(PRUNED_MODEL, *KEY)]["status"]
    assert status["lastFailure"]["exitCode"] == 3
    assert status["lastFailure"]["reason"] == "SOURCE_NOT_FOUND"
    assert condition(twin, "Available")["status"] == "True"
    assert uid_of(twin.objects[ObjectKey(DEPLOYMENT, NAMESPACE, "chat-worker")]) == deployment
    twin.edit(ObjectKey(PRUNED_MODEL, *KEY), {"metadata": {"annotations": {"premoe.dev/retry": "2"}}})
    await drive(life, KEY, twin.advance)
    assert ready(twin) == ("True", "AllReady")
    assert len(twin.of_kind(JOB)) == 1


async def test_missing_calibration_is_said_and_found_again() -> None:
    twin = twin_with(model(patterns={"tasks": TASKS}))
    prompts = twin.objects.pop(ObjectKey(CONFIG_MAP, NAMESPACE, "prompts"))
    life = operator(twin)
    await life.reconcile(KEY)
    twin.advance()
    for _ in range(4):
        outcome = await life.reconcile(KEY)
    assert condition(twin, "PatternsReady")["reason"] == "ConfigMapNotFound"
    assert outcome.requeue_after_s == 1.0
    twin.put(prompts)
    await drive(life, KEY, twin.advance)
    assert ready(twin) == ("True", "AllReady")
