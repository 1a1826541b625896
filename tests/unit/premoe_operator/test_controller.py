"""The acting replica without kopf: first lists, lists after a relist, and faults that stay with one PrunedModel."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client import Configuration
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from premoe_operator.api.release import Release
from premoe_operator.decide.observed import PackFacts, WorkerPreload
from premoe_operator.kube.cluster import ApiFailure, FenceClosed, Listed
from premoe_operator.kube.connection import Connection
from premoe_operator.kube.kinds import CERTIFICATE, CONFIG_MAP, DEPLOYMENT, LEASE, PRUNED_MODEL, SERVICE, Kind, kind_of
from premoe_operator.kube.objects import ModelKey, ObjectKey
from premoe_operator.run import controller as controller_module
from premoe_operator.run import reconciler as reconciler_module
from premoe_operator.run.controller import Controller
from premoe_operator.run.metrics import Metrics
from premoe_operator.run.namespaces import LEASE_NAME
from premoe_operator.run.settings import OperatorSettings
from support.api_faults import FactsStore
from support.cluster_twin import MODEL_ID, NAMESPACE, ClusterTwin

RELEASE = Release.model_validate(
    {
        "workerImage": "registry.example/premoe-worker:1",
        "storeUrl": "s3://packs/premoe",
        "expertStore": {"name": "store", "namespace": "premoe"},
        "retrieval": {"name": "retrieval", "namespace": "premoe"},
    }
)


def nowhere() -> Connection:
    async def read() -> None:
        raise AssertionError("no test here connects")

    return Connection(Configuration(), read)


def controller(twin: ClusterTwin, tmp_path: Path, **changes: Any) -> Controller:
    settings = OperatorSettings(release_file=str(tmp_path / "release.json"), retry_max_s=0.3, **changes)
    store = FactsStore(PackFacts(MODEL_ID, "tiny-moe", layer_experts=(16,) * 4, top_k=4, blob_bytes=8192))
    return Controller(settings, RELEASE, nowhere(), twin, store, NoWorkers(), Metrics())


class NoWorkers:
    async def preloads(self, host: str, port: int, *, encrypted: bool) -> tuple[WorkerPreload, ...]:
        raise AssertionError("no model here preloads")


def put_model(twin: ClusterTwin, name: str, namespace: str = NAMESPACE, **spec: Any) -> None:
    source = {"uri": "hf://premoe/tiny-moe", "revision": "0" * 40}
    twin.put(
        {
            "apiVersion": PRUNED_MODEL.api_version,
            "kind": PRUNED_MODEL.name,
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"model": source, "budget": "4/8", **spec},
        }
    )


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what it looks at has no event
            await asyncio.sleep(0.02)


@pytest.fixture
def without_kopf(monkeypatch: pytest.MonkeyPatch) -> None:
    async def watch_nothing(self: Controller, stop: asyncio.Event, take_signals: Any) -> None:
        await stop.wait()

    monkeypatch.setattr(Controller, "_run_kopf", watch_nothing)


@pytest.mark.usefixtures("without_kopf")
async def test_lists_find_what_watches_missed(tmp_path: Path) -> None:
    twin = ClusterTwin()
    put_model(twin, "chat")
    acting = controller(twin, tmp_path)
    stop = asyncio.Event()
    running = asyncio.create_task(acting.run(stop))
    service = ObjectKey(SERVICE, NAMESPACE, "chat-worker")
    await until(lambda: service in twin.objects)
    assert acting.is_synced
    twin.remove(service)
    where = f"/{SERVICE.path(None)}"
    acting._on_list(where)  # kopf's own first list
    await asyncio.sleep(0.1)
    assert service not in twin.objects
    acting._on_list(where)  # its watch had to start anew
    await until(lambda: service in twin.objects)
    stop.set()
    await running


@pytest.mark.usefixtures("without_kopf")
async def test_a_watch_that_never_opens_is_stale(tmp_path: Path) -> None:
    acting = controller(ClusterTwin(), tmp_path, watch_stale_s=0.2)
    assert acting.stale_watch() is None
    stop = asyncio.Event()
    running = asyncio.create_task(acting.run(stop))
    await until(lambda: acting.stale_watch() is not None)
    assert f"the watch of /{PRUNED_MODEL.path(None)} has been silent for" in str(acting.stale_watch())
    stop.set()
    await running


class WithoutCertManager(ClusterTwin):
    """An API server that does not know cert-manager's group until it is installed."""

    installed = False

    async def list(self, kind: Kind, namespace: str | None, **selectors: str) -> Listed:
        self._check(kind)
        return await super().list(kind, namespace, **selectors)

    async def create(self, obj: Any) -> Any:
        self._check(kind_of(obj))
        return await super().create(obj)

    def _check(self, kind: Kind) -> None:
        if kind is CERTIFICATE and not self.installed:
            raise ApiFailure(404, "", "404 page not found")


@pytest.mark.usefixtures("without_kopf")
@pytest.mark.parametrize("namespaces", [(), (NAMESPACE,), ("first", NAMESPACE, "third")])
async def test_without_cert_manager_every_model_that_needs_none_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, namespaces: tuple[str, ...]
) -> None:
    twin = WithoutCertManager()
    put_model(twin, "plain")
    put_model(twin, "guarded", access={"tls": {"mode": "Mutual", "issuerRef": {"name": "ca"}}})
    acting = controller(twin, tmp_path, watch_certificates=True, watch_namespaces=namespaces)
    stop = asyncio.Event()
    running = asyncio.create_task(acting.run(stop))
    guarded = ObjectKey(PRUNED_MODEL, NAMESPACE, "guarded")
    certificate = ObjectKey(CERTIFICATE, NAMESPACE, "guarded-worker")
    await until(lambda: ObjectKey(SERVICE, NAMESPACE, "plain-worker") in twin.objects)
    await until(lambda: "does not serve cert-manager.io/v1" in str(twin.objects[guarded].get("status")))
    assert acting.is_synced
    assert caplog.text.count("this API server has no cert-manager Certificates") == 1
    assert not [path for path in acting._clock.ages_s() if "certificates" in path], "a watch that nobody opens"
    twin.installed = True
    await until(lambda: certificate in twin.objects)
    stop.set()
    await running


@pytest.mark.usefixtures("without_kopf")
async def test_other_kinds_are_waited_for(tmp_path: Path) -> None:
    """A definition of ours that comes later, as when both charts are installed in the wrong order."""
    twin = ClusterTwin()
    listing, missing = twin.list, True

    async def list_all(kind: Kind, namespace: str | None, **selectors: str) -> Listed:
        if kind is DEPLOYMENT and missing:
            raise ApiFailure(404, "NotFound", "the server could not find the requested resource")
        return await listing(kind, namespace, **selectors)

    twin.list = list_all  # type: ignore[method-assign]
    acting = controller(twin, tmp_path, watch_certificates=True)
    stop = asyncio.Event()
    running = asyncio.create_task(acting.run(stop))
    await until(lambda: "list jobs" in twin.calls)
    assert not acting.is_synced
    missing = False
    await until(lambda: acting.is_synced)
    stop.set()
    await running


async def test_a_stop_during_the_first_lists_ends_them(tmp_path: Path) -> None:
    """Otherwise the Lease would stay with a process that is killed in the end."""
    twin = ClusterTwin()
    asked = asyncio.Event()

    async def down(kind: Kind, namespace: str | None, **selectors: str) -> Listed:
        asked.set()
        raise ApiFailure(0, "Unreachable", "the API server did not answer")

    twin.list = down  # type: ignore[method-assign]
    stop = asyncio.Event()
    running = asyncio.create_task(controller(twin, tmp_path).run(stop))
    await asked.wait()
    stop.set()
    async with asyncio.timeout(10):
        await running


@pytest.mark.usefixtures("without_kopf")
@pytest.mark.parametrize("lease", ["premoe-operator", ""])
async def test_the_gateway_hears_of_our_workers_and_never_of_another_releases(tmp_path: Path, lease: str) -> None:
    twin, where = ClusterTwin(), ObjectKey(CONFIG_MAP, "premoe", "workers")
    twin.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": where.name, "namespace": where.namespace}})
    put_model(twin, "chat")
    if lease:
        put_model(twin, "other", namespace="team-b")
        spec = {"holderIdentity": "another", "leaseDurationSeconds": 300}
        claim = {"name": LEASE_NAME, "namespace": "team-b"}
        twin.put({"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": claim, "spec": spec})
    seen: list[str] = []
    patching = twin.merge_patch

    async def merge_patch(kind: Kind, namespace: str, name: str, patch: Any) -> Any:
        if kind is CONFIG_MAP:
            seen.append(patch["data"]["workers"])
        return await patching(kind, namespace, name, patch)

    twin.merge_patch = merge_patch  # type: ignore[method-assign]
    getting = twin.get

    async def get(kind: Kind, namespace: str, name: str) -> Any:
        if (kind, namespace) == (LEASE, "team-b"):
            await until(lambda: seen)  # something is published before this release knows whose that namespace is
        return await getting(kind, namespace, name)

    twin.get = get  # type: ignore[method-assign]
    stop = asyncio.Event()
    acting = controller(twin, tmp_path, namespace="premoe", workers_config_map=where.name, lease_name=lease)
    running = asyncio.create_task(acting.run(stop))
    ours = f"dns:///chat-worker.{NAMESPACE}.svc:50051\n"
    await until(lambda: (twin.objects[where].get("data") or {}).get("workers") == ours)
    stop.set()
    await running
    assert not [text for text in seen if "team-b" in text]


@pytest.mark.usefixtures("without_kopf")
async def test_a_fault_with_one_model_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = reconciler_module.Reconciler.reconcile

    async def faulty(self: Any, model: ModelKey) -> Any:
        if model.name == "bad":
            raise KeyError("a bug")
        return await original(self, model)

    monkeypatch.setattr(reconciler_module.Reconciler, "reconcile", faulty)
    twin = ClusterTwin()
    put_model(twin, "bad")
    put_model(twin, "good")
    stop = asyncio.Event()
    running = asyncio.create_task(controller(twin, tmp_path).run(stop))
    await until(lambda: ObjectKey(SERVICE, NAMESPACE, "good-worker") in twin.objects)
    stop.set()
    await running
    assert ObjectKey(SERVICE, NAMESPACE, "bad-worker") not in twin.objects


@pytest.mark.usefixtures("without_kopf")
async def test_a_closed_fence_ends_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = ClusterTwin()
    put_model(twin, "chat")

    async def closed(obj: Any) -> Any:
        raise FenceClosed("not ours")

    monkeypatch.setattr(twin, "create", closed)
    with pytest.raises(FenceClosed):
        await controller(twin, tmp_path).run(asyncio.Event())


@pytest.mark.usefixtures("without_kopf")
async def test_what_the_api_keeps_otherwise_is_not_applied_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An API server that drops a field of ours, as an admission webhook may."""
    twin = ClusterTwin()
    put_model(twin, "chat")
    create = twin.create

    async def drops_ports(obj: Any) -> Any:
        if obj["kind"] == "Service":
            obj = {**obj, "spec": {**obj["spec"], "ports": []}}
        return await create(obj)

    async def keeps_nothing(obj: Any) -> Any:
        twin.calls.append("apply")
        return twin.objects[ObjectKey(SERVICE, NAMESPACE, "chat-worker")]

    monkeypatch.setattr(twin, "create", drops_ports)
    monkeypatch.setattr(twin, "apply", keeps_nothing)
    stop = asyncio.Event()
    running = asyncio.create_task(controller(twin, tmp_path).run(stop))
    await until(lambda: "apply" in twin.calls)
    await asyncio.sleep(1.0)
    stop.set()
    await running
    assert twin.calls.count("apply") < 8


@pytest.mark.usefixtures("without_kopf")
async def test_one_span_for_each_reconcile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(controller_module, "tracer", lambda: provider.get_tracer("test"))
    twin = ClusterTwin()
    put_model(twin, "chat")
    stop = asyncio.Event()
    running = asyncio.create_task(controller(twin, tmp_path).run(stop))
    await until(lambda: exporter.get_finished_spans())
    stop.set()
    await running
    first = exporter.get_finished_spans()[0]
    assert first.name == "reconcile"
    assert first.attributes is not None
    assert first.attributes["premoe.model"] == "chat"
    assert first.attributes["k8s.namespace.name"] == NAMESPACE
    provider.shutdown()
