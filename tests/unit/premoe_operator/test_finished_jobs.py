"""What is packed and profiled stays so: harmless edits redo nothing, and other content is never served unasked."""

from __future__ import annotations

from typing import Any

import pytest
from premoe_operator.api.names import ANNOTATION_RETRY
from premoe_operator.kube.kinds import DEPLOYMENT, JOB, PRUNED_MODEL
from premoe_operator.kube.objects import Json, ObjectKey, key_of, uid_of
from support.api_faults import drive
from support.cluster_twin import MODEL_ID, NAMESPACE, ClusterTwin
from support.served_models import KEY, TASKS, condition, model, operator, ready, twin_with

OTHER_ID = "blake3:" + "ef" * 32
MISMATCH = {"reason": "MODEL_ID_MISMATCH", "message": f"the source packs to {OTHER_ID}, but {MODEL_ID} is expected"}

HARMLESS: dict[str, Json] = {
    "image": {"engine": {"image": "registry.example/own:2"}},
    "device": {"engine": {"device": "cuda:1"}},
    "placement": {"workers": {"placement": {"nodeSelector": {"pool": "b"}, "priorityClassName": "low"}}},
    "account": {"workers": {"serviceAccountName": "own"}},
    "retries": {"jobs": {"retries": 1, "timeoutSeconds": 120}},
    "labels": {"jobs": {"labels": {"queue": "nightly"}}},
    "resources": {"jobs": {"resources": {"limits": {"memory": "1Gi"}}, "scratchSize": "3Gi"}},
    "the id it has": {"model": {"modelId": MODEL_ID}},
}


def jobs(twin: ClusterTwin) -> dict[str, str]:
    return {uid_of(job): job["metadata"]["name"] for job in twin.of_kind(JOB)}


def job(twin: ClusterTwin, component: str) -> Json:
    (found,) = (
        job for job in twin.of_kind(JOB) if job["metadata"]["labels"]["app.kubernetes.io/component"] == component
    )
    return found


def edit(twin: ClusterTwin, spec: Json) -> None:
    twin.edit(ObjectKey(PRUNED_MODEL, *KEY), {"spec": spec})


def args(found: Json) -> list[str]:
    (container,) = found["spec"]["template"]["spec"]["containers"]
    return list(container["args"])


async def converged(**spec: Any) -> ClusterTwin:
    twin = twin_with(model(**spec))
    await drive(operator(twin), KEY, twin.advance)
    assert ready(twin) == ("True", "AllReady")
    return twin


@pytest.mark.parametrize("change", HARMLESS)
async def test_a_harmless_edit_keeps_what_is_finished(change: str) -> None:
    twin = await converged(patterns={"tasks": TASKS})
    before = jobs(twin)
    edit(twin, HARMLESS[change])
    life = operator(twin)
    await life.reconcile(KEY)
    assert condition(twin, "ArtifactsReady")["status"] == "True"
    assert condition(twin, "PatternsReady")["status"] == "True"
    await drive(life, KEY, twin.advance)
    assert ready(twin) == ("True", "AllReady")
    assert jobs(twin) == before


@pytest.mark.parametrize("change", ["image", "placement", "account", "retries", "labels", "resources"])
async def test_an_edit_is_another_try_of_what_has_failed(change: str) -> None:
    twin = twin_with(model())
    life = operator(twin)
    await life.reconcile(KEY)
    twin.finish(job(twin, "pack"), {"reason": "HUB", "message": "away"}, exit_code=6)
    await life.reconcile(KEY)
    assert ready(twin) == ("False", "PackFailed")
    (failed,) = jobs(twin)
    edit(twin, HARMLESS[change])
    await drive(life, KEY, twin.advance)
    assert ready(twin) == ("True", "AllReady")
    assert failed not in jobs(twin)


async def test_a_retry_asked_for_runs_a_finished_job_again() -> None:
    twin = await converged()
    before = jobs(twin)
    twin.edit(ObjectKey(PRUNED_MODEL, *KEY), {"metadata": {"annotations": {ANNOTATION_RETRY: "1"}}})
    await drive(operator(twin), KEY, twin.advance)
    assert not set(jobs(twin)) & set(before)
    assert ready(twin) == ("True", "AllReady")


async def test_a_source_with_other_content_is_said_and_not_served() -> None:
    twin = await converged()
    assert "--expect" not in args(job(twin, "pack"))
    workers = ObjectKey(DEPLOYMENT, NAMESPACE, "chat-worker")
    template = twin.objects[workers]["spec"]["template"]
    twin.remove(key_of(job(twin, "pack")))  # somebody deleted it, so it is made again
    life = operator(twin)
    await life.reconcile(KEY)
    again = job(twin, "pack")
    assert args(again)[-2:] == ["--expect", MODEL_ID]
    twin.finish(again, MISMATCH, exit_code=4)
    await life.reconcile(KEY)
    found = condition(twin, "ArtifactsReady")
    assert (found["status"], found["reason"]) == ("False", "ModelIdMismatch")
    assert OTHER_ID in found["message"]
    assert condition(twin, "Available")["status"] == "True"
    assert twin.objects[workers]["spec"]["template"] == template
    # Whoever wants the new content names it.
    edit(twin, {"model": {"modelId": OTHER_ID}})
    await life.reconcile(KEY)
    assert args(job(twin, "pack"))[-2:] == ["--expect", OTHER_ID]


async def test_an_id_that_the_pack_has_not_is_a_condition_until_it_is_corrected() -> None:
    twin = await converged()
    (packed,) = jobs(twin)
    edit(twin, {"model": {"modelId": OTHER_ID}})
    life = operator(twin)
    await life.reconcile(KEY)
    (tried,) = (found for found in twin.of_kind(JOB) if uid_of(found) != packed)
    twin.finish(tried, MISMATCH, exit_code=4)
    await life.reconcile(KEY)
    assert ready(twin) == ("False", "ModelIdMismatch")
    edit(twin, {"model": {"modelId": MODEL_ID}})
    await drive(life, KEY, twin.advance)
    assert ready(twin) == ("True", "AllReady")
    assert set(jobs(twin)) == {packed}
