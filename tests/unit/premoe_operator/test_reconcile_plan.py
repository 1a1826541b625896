"""What is planned for what is observed, as tables. Whole lives are in test_reconciler.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from premoe_operator.api.names import ANNOTATION_RESULT
from premoe_operator.api.reasons import Reason
from premoe_operator.api.release import Release, ReleaseGateway
from premoe_operator.api.resources import parse_spec
from premoe_operator.decide.observed import Observed, PackFacts, Refusal, StoreFailure
from premoe_operator.decide.plan import Plan, plan
from premoe_operator.decide.situation import needs
from premoe_operator.kube.kinds import CERTIFICATE, DEPLOYMENT, JOB, PRUNED_MODEL
from premoe_operator.kube.objects import Json, ObjectKey, key_of, uid_of
from support import pruned_models

RELEASE = Release.model_validate(pruned_models.RELEASE)
FACTS = PackFacts(pruned_models.MODEL_ID, "mixtral", layer_experts=(8,) * 2, top_k=2, blob_bytes=4096)
NOW = "2026-01-01T00:00:00Z"
TASK = {"name": "sum", "calibration": {"configMap": {"name": "prompts", "key": "sum.jsonl"}}}


def model(**spec: Any) -> Json:
    metadata = {
        "name": "chat",
        "namespace": "a",
        "uid": "u1",
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:05Z",
    }
    source = {"uri": "s3://models/tiny"}
    return {
        "apiVersion": PRUNED_MODEL.api_version,
        "kind": PRUNED_MODEL.name,
        "metadata": metadata,
        "spec": {"model": source, "budget": "2/4", **spec},
    }


def rival(created: str, uid: str) -> Json:
    """Another PrunedModel with the same served name."""
    return {**model(), "metadata": {"namespace": "b", "name": "x", "uid": uid, "creationTimestamp": created}}


def planned(observed: Observed) -> Plan:
    return plan(observed, RELEASE, now=NOW, poll_s=5.0)


def names(objects: tuple[Json, ...]) -> list[str]:
    return [f"{obj['kind']}/{obj['metadata']['name'].split('-')[1]}" for obj in objects]


def ready(found: Plan) -> tuple[str, str]:
    assert found.status is not None
    return found.status.conditions[0].status, found.status.conditions[0].reason


def after(observed: Observed, *, finished: bool = True) -> Observed:
    """The next observation: what was created is there, and Jobs have ended well."""
    children = dict(observed.children)
    results = {"pack": {"modelId": pruned_models.MODEL_ID}, "profile": {}, "patterns": {"patternSet": "blake3:00"}}
    for number, obj in enumerate(planned(observed).changes.create):
        made = {**obj, "metadata": {**obj["metadata"], "uid": f"c{len(children)}{number}", "generation": 1}}
        if made["kind"] == "Job" and finished:
            component = made["metadata"]["labels"]["app.kubernetes.io/component"]
            text = str(results[component]).replace("'", '"')
            made["metadata"]["annotations"] = {**made["metadata"]["annotations"], ANNOTATION_RESULT: text}
            made["status"] = {"conditions": [{"type": "Complete", "status": "True"}], "completedIndexes": "0"}
        children[key_of(made)] = made
    return replace(observed, children=children)


def test_first_the_surroundings_and_the_pack_job() -> None:
    found = planned(Observed(model()))
    assert names(found.changes.create)[-1] == "Job/pack"
    assert "Deployment/worker" not in names(found.changes.create)
    assert names(found.changes.create)[0] == "NetworkPolicy/worker"  # no pod before its policy
    assert ready(found) == ("False", "Packing")


def test_then_workers_once_the_store_told_the_facts() -> None:
    packed = after(Observed(model()))
    assert needs(packed.model, packed.children, RELEASE).manifest_of == pruned_models.MODEL_ID
    found = planned(replace(packed, store=FACTS))
    assert names(found.changes.create)[-1] == "Deployment/worker"
    assert found.status is not None
    assert found.status.resolved.expert_bytes == 2 * 8 * 4096
    assert found.status.resolved.resident_bytes == 2 * 6 * 4096


def test_the_time_to_start_follows_the_bytes_of_skeleton_and_slots() -> None:
    """600 s, and one for every 64 MiB of 2 × 6 slots of 1 GiB and a skeleton of 4 GiB; told in the status."""
    facts = replace(FACTS, blob_bytes=1 << 30, skeleton_bytes=4 << 30)
    found = planned(replace(after(Observed(model())), store=facts))
    assert found.status is not None
    deployment = found.changes.create[-1]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    probe = container["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] == found.status.resolved.startup_seconds == 860
    lost = planned(
        replace(after(replace(after(Observed(model())), store=facts)), store=StoreFailure("StoreUnreachable", "away"))
    )
    assert not lost.changes.apply


@pytest.mark.parametrize(("allocation", "slots"), [("Shared", (9, 3)), ("Uniform", (6, 3))])
def test_layers_with_fewer_experts_are_counted_as_they_are(allocation: str, slots: tuple[int, int]) -> None:
    packed = after(Observed(model(allocation=allocation)))
    found = planned(replace(packed, store=replace(FACTS, layer_experts=(10, 3)))).status
    assert found is not None
    resolved = found.resolved
    assert (resolved.layers, resolved.experts, resolved.layer_experts) == (2, 10, [10, 3])
    assert (resolved.expert_bytes, resolved.resident_bytes) == (13 * 4096, sum(slots) * 4096)


def test_tasks_come_between_pack_and_workers() -> None:
    observed = replace(after(Observed(model(patterns={"tasks": [TASK]}))), store=FACTS)
    steps = []
    for _ in range(3):
        steps.append(names(planned(observed).changes.create))
        observed = after(observed)
    assert steps[:2] == [["Job/profile"], ["Job/patterns"]]
    assert steps[2][-1] == "Deployment/worker"


@pytest.mark.parametrize(
    ("spec", "observed", "reason"),
    [
        ({"budget": "nonsense"}, {}, "SpecInvalid"),
        ({"unknown": 1}, {}, "SpecInvalid"),
        ({}, {"rivals": (rival("2026-01-01T00:00:01Z", "u0"),)}, "ServedNameConflict"),
        ({}, {"rivals": (rival("2026-01-01T00:00:05Z", "u0"),)}, "ServedNameConflict"),
        ({"podTemplate": {"spec": {"hostNetwork": True}}}, {}, "PodTemplateRefused"),
    ],
)
def test_a_refused_spec_changes_no_child(spec: Json, observed: Json, reason: str) -> None:
    found = planned(Observed(model(**spec), **observed))
    assert ready(found) == ("False", reason)
    assert not found.changes.writes


@pytest.mark.parametrize(
    "other",
    [rival("2026-01-01T00:00:09Z", "u0"), rival("2026-01-01T00:00:05Z", "u2")],
)
def test_a_younger_rival_is_no_obstacle(other: Json) -> None:
    assert planned(Observed(model(), rivals=(other,))).changes.create


def sharing(name: str, created: str, **spec: Any) -> Json:
    """Another PrunedModel over the same pack, with one task."""
    found = model(patterns={"tasks": [{"name": "roman", "calibration": {"uri": "s3://data/roman.jsonl"}}]}, **spec)
    found["metadata"] |= {"name": name, "uid": name, "creationTimestamp": created}
    return {**found, "status": {"resolved": {"modelId": pruned_models.MODEL_ID}}}


def with_patterns(**changes: Any) -> Observed:
    """A PrunedModel with one task, whose profile is there."""
    source = model(patterns={"tasks": [TASK]})
    source["status"] = {"resolved": {"modelId": pruned_models.MODEL_ID}}
    return replace(after(after(replace(Observed(source), store=FACTS))), **changes)


OLDER, YOUNGER = "2026-01-01T00:00:01Z", "2026-01-01T00:00:09Z"


def test_an_older_set_of_the_same_weights_stays_live() -> None:
    observed = with_patterns(same_weights=(sharing("first", OLDER), sharing("second", YOUNGER)))
    found = planned(observed)
    assert ready(found) == ("False", "PatternSetConflict")
    assert found.status is not None
    assert "a/first is older" in next(one for one in found.status.conditions if one.type == "PatternsReady").message
    assert found.changes.create == ()
    assert found.requeue_after_s is None  # the cache says when the other one has changed
    assert names(planned(replace(observed, same_weights=())).changes.create) == ["Job/patterns"]


@pytest.mark.parametrize(
    "other",
    [
        sharing("other", YOUNGER),
        {**sharing("other", OLDER), "spec": model(patterns={"tasks": [TASK]})["spec"]},
        {**sharing("other", OLDER), "metadata": {**sharing("other", OLDER)["metadata"], "deletionTimestamp": OLDER}},
    ],
    ids=["younger", "wants the same", "is being deleted"],
)
def test_a_set_that_does_not_stand_in_the_way(other: Json) -> None:
    assert names(planned(with_patterns(same_weights=(other,))).changes.create) == ["Job/patterns"]


def test_the_same_set_as_the_oldest_is_no_conflict_whatever_a_third_wants() -> None:
    first = {**sharing("first", OLDER), "spec": model(patterns={"tasks": [TASK]})["spec"]}
    second = sharing("second", "2026-01-01T00:00:03Z")
    assert names(planned(with_patterns(same_weights=(first, second))).changes.create) == ["Job/patterns"]


def test_a_set_that_was_live_before_is_built_again_after_the_conflict() -> None:
    observed = after(with_patterns())
    assert ready(planned(observed)) != ("False", "PatternSetConflict")
    doomed = planned(replace(observed, same_weights=(sharing("first", OLDER),))).changes.delete
    assert [one.key.kind for one in doomed] == [JOB]
    assert "-patterns-" in doomed[0].key.name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"budget": "4/4"}, "top-k is 2"),
        ({"budget": "2/16"}, "the model has 8"),
        ({"patterns": {"generalistBudget": "2/16"}}, "the model has 8"),
        ({"engine": {"slots": 4}}, "too few for budget"),
    ],
)
def test_a_budget_that_the_model_cannot_run(spec: Json, message: str) -> None:
    found = planned(replace(after(Observed(model(**spec))), store=FACTS))
    assert ready(found) == ("False", "BudgetImpossible")
    assert found.status is not None
    assert message in found.status.conditions[0].message
    assert not any(obj["kind"] in ("Deployment", "ControllerRevision") for obj in found.changes.create)


WEIGHTS = PackFacts(
    pruned_models.MODEL_ID, "mixtral", layer_experts=(8,) * 2, top_k=2, blob_bytes=1 << 30, skeleton_bytes=1 << 30
)
"""With slots for 6 experts a layer: 12 GiB of slots."""


@pytest.mark.parametrize(
    ("limit", "changes", "fits"),
    [
        ("13.25Gi", {}, True),
        ("13Gi", {}, False),
        ("13.75Gi", {"sharedMemorySize": "512Mi"}, True),
        ("13.5Gi", {"sharedMemorySize": "512Mi"}, False),
        (None, {}, True),
    ],
)
def test_a_memory_limit_that_a_worker_cannot_keep(limit: str | None, changes: Json, fits: bool) -> None:
    limits = {} if limit is None else {"memory": limit}
    spec = {"workers": {"resources": {"limits": limits}, **changes}}
    found = planned(replace(after(Observed(model(**spec))), store=WEIGHTS))
    assert found.status is not None
    accepted = found.status.conditions[2]
    assert accepted.type == "SpecAccepted"
    assert accepted.reason == ("Accepted" if fits else "MemoryTooSmall")
    if not fits:
        assert "12.0 GiB for slots, 1.0 GiB for everything but the experts" in accepted.message
        assert f"limit is {limit}" in accepted.message
    assert fits == any(obj["kind"] == "Deployment" for obj in found.changes.create)


@pytest.mark.parametrize(("host_memory", "fits"), [("2Gi", True), ("4Gi", False)])
def test_on_a_gpu_only_what_lies_beside_it_counts(host_memory: str, fits: bool) -> None:
    limits = {"memory": "3Gi", "nvidia.com/gpu": "1"}
    spec = {"workers": {"resources": {"limits": limits}}, "engine": {"hostMemory": host_memory}}
    found = planned(replace(after(Observed(model(**spec))), store=WEIGHTS))
    assert fits == any(obj["kind"] == "Deployment" for obj in found.changes.create)


def test_status_says_where_and_as_what_the_model_is_reached() -> None:
    release = RELEASE.model_copy(
        update={"gateway": ReleaseGateway(namespace="premoe", url="http://premoe-gateway.premoe.svc:8000")}
    )
    found = plan(Observed(model(model={"uri": "s3://models/tiny", "servedName": "a/b"})), release, now=NOW, poll_s=5.0)
    assert found.status is not None
    assert found.status.endpoints.model_dump() == {
        "grpc": "dns:///chat-worker.a.svc:50051",
        "gateway": "http://premoe-gateway.premoe.svc:8000",
        "served_name": "a/b",
    }
    assert planned(Observed(model())).status.endpoints.gateway == ""  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "spec",
    [{"patterns": {"tasks": [TASK]}}, {"access": {"peers": [{}]}}, {"workers": {"rollout": {"type": "InPlace"}}}],
)
def test_an_edit_of_what_is_in_no_template_rolls_no_worker(spec: Json) -> None:
    """Both ways: the first such field of a part, and the last one taken out again."""
    for first, second in ((model(), model(**spec)), (model(**spec), model())):
        serving = Observed(first, store=FACTS)
        for _ in range(4):
            serving = after(serving)
        before = serving.children[ObjectKey(DEPLOYMENT, "a", "chat-worker")]
        edited = replace(serving, model=second)
        for _ in range(4):
            applied = {key_of(obj): obj for obj in planned(edited).changes.apply}
            found = applied.get(key_of(before), before)
            assert found["spec"]["template"] == before["spec"]["template"]
            edited = after(edited)


def test_a_budget_in_numbers_and_one_in_text_are_one_template() -> None:
    numbers = {name: value for name, value in model()["spec"].items() if name != "budget"}
    numbers["experts"] = {"active": 2, "kept": 4}
    found = [parse_spec(spec) for spec in (model()["spec"], numbers)]
    assert found[0] == found[1]
    assert planned(Observed({**model(), "spec": numbers})).status.budget == "2/4"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("store", "status", "reason"),
    [
        (StoreFailure(Reason.STORE_UNREACHABLE, "down"), "Unknown", "StoreUnreachable"),
        (StoreFailure(Reason.MANIFEST_NOT_FOUND, "none"), "False", "ManifestNotFound"),
    ],
)
def test_a_store_without_facts_is_asked_again(store: StoreFailure, status: str, reason: str) -> None:
    found = planned(replace(after(Observed(model())), store=store))
    assert found.status is not None
    artifacts = next(entry for entry in found.status.conditions if entry.type == "ArtifactsReady")
    assert (artifacts.status, artifacts.reason) == (status, reason)
    assert found.requeue_after_s == 5.0


def test_nothing_is_done_for_one_that_is_being_deleted() -> None:
    gone = model()
    gone["metadata"]["deletionTimestamp"] = NOW
    assert planned(Observed(gone)) == Plan()


def test_what_the_api_refused_is_said() -> None:
    key = ObjectKey(JOB, "a", "chat-pack-x")
    found = planned(
        Observed(model(), refusals={key: Refusal(Reason.QUOTA_EXCEEDED, "Job chat-pack-x: exceeded quota")})
    )
    assert ready(found) == ("False", "QuotaExceeded")


def test_suspend_stops_workers_and_jobs_only() -> None:
    running = after(replace(after(Observed(model())), store=FACTS))
    suspended = {**running.model, "spec": {**running.model["spec"], "suspend": True}}
    changes = planned(replace(running, model=suspended)).changes
    assert [obj["spec"]["replicas"] for obj in changes.apply if obj["kind"] == "Deployment"] == [0]
    assert not changes.delete
    fresh = planned(Observed(suspended)).changes.create
    assert [obj["spec"]["suspend"] for obj in fresh if obj["kind"] == "Job"] == [True]


def test_an_apply_carries_the_uid_of_what_was_seen() -> None:
    running = after(replace(after(Observed(model())), store=FACTS))
    scaled = {**running.model, "spec": {**running.model["spec"], "workers": {"replicas": 3}}}
    (deployment,) = planned(replace(running, model=scaled)).changes.apply
    seen = running.children[ObjectKey(DEPLOYMENT, "a", "chat-worker")]
    assert uid_of(deployment) == uid_of(seen)
    assert deployment["spec"]["replicas"] == 3


def test_a_certificate_has_a_condition_of_its_own() -> None:
    spec = {"access": {"tls": {"mode": "Mutual", "issuerRef": {"name": "mesh"}}}}
    observed = after(Observed(model(**spec)))
    found = planned(observed)
    assert found.status is not None
    assert {entry.type: entry.reason for entry in found.status.conditions}["CertificateReady"] == "Issuing"
    key = ObjectKey(CERTIFICATE, "a", "chat-worker")
    issued = {**observed.children[key], "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    found = planned(replace(observed, children={**observed.children, key: issued}))
    assert found.status is not None
    assert {entry.type: entry.reason for entry in found.status.conditions}["CertificateReady"] == "Issued"


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(pruned_models.specs())
def test_any_valid_spec_converges(document: Json) -> None:
    """Whatever the spec: a plan, then nothing left to write; never an exception and never half a set."""
    observed = replace(Observed(model(**document)), store=FACTS)
    for _ in range(5):
        observed = after(observed)
    left = planned(observed).changes
    assert not left.create
    assert not left.apply
    assert not left.delete
