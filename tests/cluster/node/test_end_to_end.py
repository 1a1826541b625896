"""The charts installed on a real node, a PrunedModel applied: Jobs run, workers serve, clients get right answers."""

from __future__ import annotations

import json
import secrets

import pytest
from support.charts import helm
from support.cluster_fixtures import once_a_run
from support.control_plane import KubectlFailed
from support.end_to_end import MAX_TOKENS, MODEL, TASKS, Ground, Release, prompts, running_release
from support.end_to_end_fixtures import ground, release
from support.metrics import scrape
from support.node_fixtures import node, node_namespace, probe_image, shared_node
from support.node_pods import apply, execute, python_pod, wait_ready
from support.process_group import wait_until

__all__ = ["ground", "node", "node_namespace", "probe_image", "release", "shared_node"]

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(900)]
BACKENDS = ("versitygw", "redis")
KINDS = (
    "pods,jobs,deployments,replicasets,services,configmaps,serviceaccounts,controllerrevisions,"
    "networkpolicies,poddisruptionbudgets,endpointslices"
)
COMPONENTS = ("operator", "retrieval", "expert-store", "gateway", "worker")
CONNECTS = """
import socket
try:
    socket.create_connection(({host!r}, {port}), timeout=2).close()
    print("open")
except TimeoutError:
    print("dropped")
"""
SCRAPES = """
import urllib.request
print(urllib.request.urlopen("http://{host}:{port}/metrics", timeout=30).read().decode())
"""
METRICS = {
    "operator": (8080, "premoe_operator_leader gauge"),
    "retrieval": (50054, "premoe:retrieval_exemplars gauge"),
    "expert-store": (50054, "premoe:store_read_bytes_total counter"),
    "gateway": (50054, "premoe:gateway_worker_up gauge"),
    "worker": (50054, "premoe:num_requests_running gauge"),
}
"""Each one's port and a metric of its own."""
_TLS_RELEASE = pytest.StashKey[Release]()


@pytest.fixture
def tls_release(request: pytest.FixtureRequest, ground: Ground) -> Release:
    """A release whose processes talk mutual TLS."""
    return once_a_run(request, _TLS_RELEASE, lambda: running_release(ground, mutual_tls=True))


def test_status_says_what_was_done(release: Release) -> None:
    status = release.get("prunedmodel", MODEL)["status"]
    assert status["workersSummary"] == "1/1"
    assert status["patternsSummary"] == f"{len(TASKS)}/{len(TASKS)}"
    assert status["resolved"]["modelId"].startswith("blake3:")
    assert (status["resolved"]["experts"], status["resolved"]["topK"]) == (64, 4)
    assert release.condition("Available") == "True"
    jobs = json.loads(release.node.kubectl("get", "jobs", "-n", release.namespace, "-o", "json"))["items"]
    succeeded = {job["metadata"]["labels"]["app.kubernetes.io/component"]: job["status"]["succeeded"] for job in jobs}
    assert succeeded == {"pack": 1, "profile": len(TASKS), "patterns": 1}


def wait_preloaded(release: Release) -> None:
    """Wait until the operator has heard from the worker that it keeps the listed task resident."""
    expected = {"tasks": 1, "resident": 1, "workers": 1, "message": ""}
    wait_until(
        lambda: release.get("prunedmodel", MODEL)["status"].get("preload") == expected,
        60,
        "the preloaded task in the status",
        poll_s=1,
    )


def test_status_says_what_workers_keep_resident(release: Release) -> None:
    wait_preloaded(release)


def test_grpc_answers_are_those_of_premoe_generate(release: Release) -> None:
    served_by = f"{release.address('worker')}:50051"
    with release.reference() as reference:
        for prompt in prompts():
            served, expected = release.generate(prompt, served_by), release.generate(prompt, reference)
            for field in ("text", "finish_reason", "pattern", "task", "prompt_tokens", "completion_tokens"):
                assert served[field] == expected[field], (prompt, field)
            assert served["decision"] == "specialist"


def test_openai_answers_are_those_of_the_worker(release: Release) -> None:
    address = f"{release.address('worker')}:50051"
    api = release.openai()
    for prompt in prompts():
        answer = api.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=MAX_TOKENS, temperature=0
        )
        direct = release.generate(prompt, address)
        assert answer.choices[0].message.content == direct["text"]
        assert answer.choices[0].finish_reason == direct["finish_reason"]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == direct["completion_tokens"]


def test_one_request_is_one_trace_over_four_services(release: Release) -> None:
    """A new worker has no experts in its memory, so that the store takes part in its first answer.

    On a busy machine it may be late with its state just then, which the gateway answers with a 503 and when to retry.
    """
    wanted = {f"premoe-{name}" for name in ("gateway", "retrieval", "worker", "expert-store")}
    release.replace_worker()
    trace_id = secrets.token_hex(16)
    release.openai().with_options(max_retries=10).chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": prompts(1)[0]}],
        max_tokens=4,
        extra_headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"},
    )
    spans = release.jaeger.wait_for_trace(trace_id, lambda found: wanted <= {span.service for span in found})
    pods = {pod["metadata"]["name"] for component in COMPONENTS for pod in release.pods(component)}
    assert {span.resource["k8s.pod.name"] for span in spans} <= pods


def test_helm_test_passes(release: Release) -> None:
    shown = helm("test", "premoe", "-n", release.namespace, "--logs", kubeconfig=release.node.control_plane.kubeconfig)
    assert "Phase:          Succeeded" in shown
    assert "SKIPPED" not in shown


def test_policies_let_only_the_release_in(release: Release, probe_image: str) -> None:
    """A stranger in the same namespace reaches the gateway, which is open, and nothing behind it."""
    apply(release.node, release.namespace, python_pod("stranger"))
    wait_ready(release.node, release.namespace, "stranger")
    doors = [
        ("gateway", 8000),
        ("worker", 50051),
        ("worker", 50052),
        ("retrieval", 50051),
        ("expert-store", 50051),
        ("expert-store", 50055),
    ]
    found = {
        (component, port): execute(
            release.node,
            release.namespace,
            "stranger",
            CONNECTS.format(host=release.address(component), port=port),
        ).strip()
        for component, port in doors
    }
    assert found == {door: "open" if door == ("gateway", 8000) else "dropped" for door in doors}


def test_metrics_of_every_component_are_read_from_another_namespace(
    release: Release, node_namespace: str, probe_image: str
) -> None:
    """As a Prometheus of the cluster does, through every policy; who may is `networkPolicy.ingress.metrics`."""
    apply(release.node, node_namespace, python_pod("prometheus"))
    wait_ready(release.node, node_namespace, "prometheus")
    for component, (port, metric) in METRICS.items():
        code = SCRAPES.format(host=release.address(component), port=port)
        assert f"# TYPE {metric}\n" in execute(release.node, node_namespace, "prometheus", code), component


def test_everything_runs_in_a_restricted_namespace(release: Release, probe_image: str) -> None:
    with pytest.raises(KubectlFailed, match="violates PodSecurity"):
        apply(release.node, release.namespace, python_pod("privileged", securityContext={"privileged": True}))
    for component in COMPONENTS:
        for pod in release.pods(component):
            contexts = [container["securityContext"] for container in pod["spec"]["containers"]]
            assert all(context["readOnlyRootFilesystem"] for context in contexts), pod["metadata"]["name"]


def test_no_container_restarted(release: Release) -> None:
    for component in COMPONENTS:
        for pod in release.pods(component):
            counts = [status["restartCount"] for status in pod["status"]["containerStatuses"]]
            assert counts == [0] * len(counts), pod["metadata"]["name"]


def test_mutual_tls_gives_the_same_answers(release: Release, tls_release: Release) -> None:
    for prompt in prompts(1):
        answers = [
            api.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=MAX_TOKENS, temperature=0
            )
            for api in (release.openai(), tls_release.openai())
        ]
        assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


def test_workers_read_experts_from_the_pods_of_the_store_by_https(tls_release: Release) -> None:
    """Through policies, by certificates that name the release and not the pod, and addresses signed by a shared key."""
    worker = scrape(f"{tls_release.address('worker')}:50054")
    assert worker.labels("premoe:fetched_bytes_total", "scheme") == {"http"}
    assert worker.value("premoe:fetch_sources_resting") == 0
    stores = [scrape(f"{pod['status']['podIP']}:50054") for pod in tls_release.pods("expert-store")]
    assert len(stores) == 2
    limits = {store.value("premoe:store_node_limit_bytes") for store in stores}
    assert limits == {256 * (1 << 20) * 15 // 16}
    assert sum(store.value("premoe:store_node_bytes") for store in stores) > 0
    codes = {code for store in stores for code in store.labels("premoe:store_http_answers_total", "code")}
    assert codes & {"200", "206"}
    assert codes <= {"200", "206"}


def test_the_operator_asks_workers_by_mutual_tls(tls_release: Release) -> None:
    wait_preloaded(tls_release)


def test_mutual_tls_refuses_callers_without_a_certificate(tls_release: Release) -> None:
    """The node itself passes every NetworkPolicy, and is refused by the workers all the same."""
    with pytest.raises(AssertionError, match=r"error: "):
        tls_release.generate("hello", f"{tls_release.address('worker')}:50051")


def test_deletion_needs_no_backend(tls_release: Release) -> None:
    """Object store and Redis hang, retrieval with its index and the expert store are gone: nothing of ours waits."""
    node, namespace = tls_release.node, tls_release.namespace
    node.kubectl(
        "scale", "-n", namespace, "--replicas=0", "deployment/premoe-retrieval", "deployment/premoe-expert-store"
    )
    for backend in BACKENDS:
        node.group.pause(backend)
    try:
        node.kubectl("delete", "prunedmodel", MODEL, "-n", namespace, "--timeout=20s")
        wait_until(lambda: not _left_of_the_model(tls_release), 30, "the end of all that the PrunedModel owned")
    finally:
        for backend in BACKENDS:
            node.group.resume(backend)


def _left_of_the_model(release: Release) -> list[str]:
    """Objects of the PrunedModel, without pods that finish their last requests."""
    label = f"premoe.dev/model={MODEL}"
    listed = release.node.kubectl("get", KINDS, "-n", release.namespace, "-l", label, "-o", "json")
    return [
        f"{obj['kind']}/{obj['metadata']['name']}"
        for obj in json.loads(listed)["items"]
        if obj["kind"] != "Pod" or "deletionTimestamp" not in obj["metadata"]
    ]
