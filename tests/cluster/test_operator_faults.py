"""Crashes, storms, dead watches, restarts of the API server: the operator converges, without duplicates or leaks."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from premoe_operator.kube.client import KubernetesApi
from premoe_operator.kube.cluster import ApiFailure
from premoe_operator.kube.connection import Connection
from premoe_operator.kube.objects import ModelKey
from support.api_faults import Crash, FaultyCluster, StormClient
from support.cluster_fixtures import control_plane, namespace
from support.freezing_proxy import freezing_proxy
from support.operator_fixtures import site
from support.operator_lives import (
    CHILDREN,
    PLAIN_CHILDREN,
    Lives,
    advance,
    api_of,
    children,
    children_by_model,
    converges,
    wait_until_ready,
    with_kubelet,
)
from support.operator_process import (
    Json,
    Kubelet,
    Site,
    pruned_model,
    running_operator,
    wait,
)

__all__ = ["control_plane", "namespace", "site"]

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


class LateSite(Site):
    """What it lists is gone by the time that anyone reads the list."""

    def list(self, plural: str, selector: str = "") -> list[Json]:
        found = super().list(plural, selector)
        for obj in found:
            self.delete(plural, obj["metadata"]["name"])
        return found


class BrokenSite(Site):
    def list(self, plural: str, selector: str = "") -> list[Json]:
        raise LookupError(plural)


def test_the_played_kubelet_passes_over_a_pod_that_went(site: Site) -> None:
    labels = {"app.kubernetes.io/component": "worker"}
    container = {"name": "worker", "image": "registry.example/worker:1"}
    spec = {"containers": [container], "serviceAccountName": "op-operator"}
    site.create("pods", {"metadata": {"name": "short", "labels": labels}, "spec": spec})
    advance(LateSite(site.cluster, site.namespace, site.folder, site.kubeconfig))
    assert site.get("pods", "short") is None


async def test_a_failure_of_the_played_kubelet_ends_the_work(site: Site) -> None:
    async with asyncio.timeout(60):
        with pytest.RaisesGroup(LookupError):
            await with_kubelet(
                BrokenSite(site.cluster, site.namespace, site.folder, site.kubeconfig), asyncio.Event().wait()
            )


def create(site: Site, name: str) -> None:
    site.create("prunedmodels", pruned_model(name))


def edit(site: Site, name: str) -> None:
    site.patch("prunedmodels", name, {"spec": {"engine": {"maxSequences": 3}, "workers": {"replicas": 2}}})


def recreate(site: Site, name: str) -> None:
    site.delete("prunedmodels", name)
    create(site, name)


@pytest.mark.parametrize(
    ("change", "revisions"), [(create, 1), (edit, 2), (recreate, 1)], ids=["create", "rollout", "recreation"]
)
async def test_a_crash_at_every_write(site: Site, change: Callable[[Site, str], None], revisions: int) -> None:
    """Each PrunedModel meets another crash; a second life brings all to the same children."""
    async with api_of(site) as api:
        lives = Lives(site, api)

        async def live(name: str, faulty: FaultyCluster) -> None:
            if change is not create:
                await asyncio.to_thread(create, site, name)
                await lives.until_ready(name, lives.life())
            await asyncio.to_thread(change, site, name)
            try:
                await lives.until_ready(name, lives.life(faulty))
            except Crash:
                await lives.until_ready(name, lives.life())

        async def limited(at: int, when: Any) -> None:
            async with lives.few:
                await live(f"m{at}-{when}", FaultyCluster(api, at=at, when=when, writes_only=True))

        counter = FaultyCluster(api, writes_only=True)
        await with_kubelet(site, live("calm", counter))
        points = [(at, when) for at in range(1, len(counter.calls) + 1) for when in ("before", "after")]
        await with_kubelet(site, asyncio.gather(*(limited(*point) for point in points)))
        found = children_by_model(site)
        assert set(found) == {"calm", *(f"m{at}-{when}" for at, when in points)}
        for name, controlled in found.items():
            assert len(controlled) == PLAIN_CHILDREN + revisions - 1, f"{name}: {controlled}"


@pytest.mark.parametrize(("codes", "share"), [((429,), 0.4), ((409,), 0.3), ((429, 409), 0.5)])
async def test_storms_of_conflicts_and_throttling(site: Site, codes: tuple[int, ...], share: float) -> None:
    storms: list[StormClient] = []

    def client(connection: Connection) -> StormClient:
        storms.append(StormClient(connection, codes, share=share, seed=7))
        return storms[0]

    async def work(api: KubernetesApi, calm: KubernetesApi) -> None:
        lives = Lives(site, calm)
        life = lives.life(FaultyCluster(api))
        key = ModelKey(site.namespace, "stormy")
        for _ in range(300):
            try:
                outcome = await life.reconcile(key)
            except ApiFailure as failure:
                if failure.message != "a storm":
                    raise
                continue
            if outcome.ready and not outcome.writes:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(site.model("stormy").get("status"))

    site.create("prunedmodels", pruned_model("stormy"))
    async with api_of(site, client) as api, api_of(site) as calm:
        await with_kubelet(site, work(api, calm))
    assert storms[0].answered > 5
    assert len(children(site, "stormy")) == PLAIN_CHILDREN


def test_ten_kills_while_it_works(site: Site) -> None:
    chance = random.Random(20261123)
    names = [f"killed{number}" for number in range(3)]
    for kill in range(10):
        with running_operator(site, lease_name="") as child:
            if kill < len(names):
                site.create("prunedmodels", pruned_model(names[kill]))
            else:
                edit = {"spec": {"engine": {"maxSequences": kill}}}
                site.patch("prunedmodels", names[kill % len(names)], edit)
            time.sleep(chance.uniform(0.0, 1.5))
            advance(site)
            child.process.kill()
            child.process.wait()
    with running_operator(site, lease_name=""):
        for name in names:
            wait_until_ready(site, name)
    for name in names:
        found = children(site, name)
        assert len([child for child in found if not child.startswith("controllerrevisions")]) == PLAIN_CHILDREN - 1
        assert len(found) <= PLAIN_CHILDREN + 3


def test_the_api_server_restarts(site: Site) -> None:
    with running_operator(site, lease_name="") as child:
        converges(site, "before")
        site.cluster.stop_apiserver()
        time.sleep(3)
        assert httpx.get(f"{child.ready['url']}/livez").status_code == 200
        site.cluster.start_apiserver()
        converges(site, "after")
        assert len(children(site, "before")) == PLAIN_CHILDREN


def test_etcd_stands_still_for_a_while(site: Site) -> None:
    with running_operator(site, lease_name=""):
        converges(site, "before")
        site.cluster.pause_etcd()
        time.sleep(8)
        site.cluster.resume_etcd()
        converges(site, "after")
        assert len(children(site, "after")) == PLAIN_CHILDREN


def proxied(site: Site, url: str) -> Path:
    """A kubeconfig like the site's that goes through a proxy."""
    found = site.folder / "proxied.kubeconfig"
    found.write_text(site.kubeconfig.read_text().replace(site.cluster.url, url))
    return found


def test_a_watch_that_has_died_silently(site: Site) -> None:
    with freezing_proxy(site.cluster.url) as proxy:
        settings: Json = {"kubeconfig": proxied(site, proxy.url), "lease_name": "", "watch_inactivity_s": 3}
        with running_operator(site, **settings):
            converges(site, "before")
            assert proxy.freeze() > 3
            converges(site, "after")


def test_liveness_fails_when_only_the_watches_are_dead(site: Site) -> None:
    with freezing_proxy(site.cluster.url) as proxy:
        settings: Json = {"kubeconfig": proxied(site, proxy.url), "lease_name": "", "watch_stale_s": 5}
        with running_operator(site, watch_inactivity_s=1000, **settings) as child:
            site.create("prunedmodels", pruned_model("quiet"))
            site.wait_for("quiet", "SpecAccepted", "True")
            proxy.freeze()
            livez = f"{child.ready['url']}/livez"
            wait(lambda: httpx.get(livez, timeout=30).status_code == 503, 60, lambda: httpx.get(livez).text)
            assert "has been silent for" in httpx.get(livez, timeout=30).text


def test_a_newer_operator_restarts_no_worker(site: Site) -> None:
    kubelet = Kubelet(site)
    with running_operator(site):
        site.create("prunedmodels", pruned_model("chat", workers={"replicas": 2}))
        kubelet.pack("chat")
        kubelet.serve("chat", 2)
        site.wait_for("chat", "Ready", "True")
    before = snapshot(site)
    text = site.release_file.read_text()
    site.release_file.write_text(text.replace('"workerImage": "', '"workerImage": "registry.example/next/'))
    assert site.release_file.read_text() != text
    with running_operator(site, identity="replica-1", next_version=True):
        site.wait_for("chat", "TemplateOutdated", "True", "TemplateOutdated")
        time.sleep(10)
        assert snapshot(site) == before
        assert site.condition("chat", "Ready")["status"] == "True"
        site.patch("prunedmodels", "chat", {"spec": {"workers": {"rollout": {"revision": "next"}}}})
        site.wait_for("chat", "TemplateOutdated", "False", "UpToDate")
    rolled = site.get("deployments", "chat-worker")
    assert rolled is not None
    container = rolled["spec"]["template"]["spec"]["containers"][0]
    assert container["image"].startswith("registry.example/next/")
    assert "PREMOE_WORKER_NEW_IN_NEXT_VERSION" in str(container["env"])


def snapshot(site: Site) -> Json:
    """Uids, generations and restarts of everything that serves."""
    objects = [
        *site.list("deployments"),
        *site.list("replicasets"),
        *site.list("pods", "app.kubernetes.io/component=worker"),
    ]
    return {
        obj["metadata"]["name"]: (
            obj["metadata"]["uid"],
            obj["metadata"].get("generation"),
            [status["restartCount"] for status in obj.get("status", {}).get("containerStatuses", [])],
        )
        for obj in objects
    }


def test_deletion_needs_nothing_of_ours(site: Site) -> None:
    with running_operator(site):
        converges(site, "chat")
        site.set_facts(None)
    assert "finalizers" not in site.model("chat")["metadata"]
    assert "kopf" not in str(site.model("chat")["metadata"])
    site.delete("prunedmodels", "chat")
    wait(
        lambda: all(not _owned(site, plural) for plural in CHILDREN),
        60,
        lambda: str([_owned(site, p) for p in CHILDREN]),
    )


def _owned(site: Site, plural: str) -> list[str]:
    return [obj["metadata"]["name"] for obj in site.list(plural, "premoe.dev/model")]


def test_a_quiet_cluster_sees_no_calls(site: Site) -> None:
    with running_operator(site) as child:
        converges(site, "chat")
        time.sleep(2)
        before = calls(child.ready)
        time.sleep(6)
        assert calls(child.ready) == before


def calls(ready: dict[str, object]) -> dict[str, float]:
    """Counts of API calls from the operator's metrics; the Lease is not among them."""
    lines = httpx.get(f"{ready['url']}/metrics").text.splitlines()
    found = [line.rsplit(" ", 1) for line in lines if line.startswith("premoe_operator_api_requests_total{")]
    return {name: float(value) for name, value in found}
