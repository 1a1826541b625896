"""Lives of the operator on a real API server, in process, and what plays the kubelet around them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from kubernetes.aio.client import ApiClient
from premoe_operator.api.release import read_release
from premoe_operator.decide.observed import PackFacts
from premoe_operator.kube.client import KubernetesApi
from premoe_operator.kube.connection import Connection, load_connection
from premoe_operator.kube.objects import ModelKey

from support.api_faults import FactsStore, FaultyCluster, Operator
from support.operator_process import FACTS, MODEL_ID, Gone, Kubelet, Site, pruned_model, wait

CHILDREN = (
    "services",
    "serviceaccounts",
    "configmaps",
    "networkpolicies",
    "poddisruptionbudgets",
    "controllerrevisions",
    "jobs",
    "deployments",
)
PLAIN_CHILDREN = 9
"""Two policies, account, residency, service, budget, Job, revision, Deployment."""


def children_by_model(site: Site) -> dict[str, list[str]]:
    """What each PrunedModel controls, by kind and name."""
    names = {model["metadata"]["uid"]: model["metadata"]["name"] for model in site.list("prunedmodels")}
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for plural in CHILDREN:
        for obj in site.list(plural):
            for owner in obj["metadata"].get("ownerReferences", []):
                if owner.get("controller") and owner["uid"] in names:
                    found[names[owner["uid"]]].append(f"{plural}/{obj['metadata']['name']}")
    return found


def children(site: Site, name: str) -> list[str]:
    """What one PrunedModel controls."""
    return children_by_model(site)[name]


def advance(site: Site) -> None:
    """End every open pack pod well, and make every worker ready."""
    kubelet = Kubelet(site)
    for pod in site.list("pods"):
        labels = pod["metadata"]["labels"]
        if pod["metadata"].get("deletionTimestamp") or pod["status"].get("phase") in ("Succeeded", "Failed"):
            continue
        with contextlib.suppress(Gone):  # a rollout may remove a pod after it was listed
            if labels["app.kubernetes.io/component"] == "pack":
                kubelet.end(pod, {"modelId": MODEL_ID})
            elif pod["status"].get("phase") != "Running":
                kubelet.run(pod)


def is_ready(site: Site, name: str) -> bool:
    return site.condition(name, "Ready").get("status") == "True"


class Lives:
    """In-process lives of the operator for one PrunedModel each, against the real API server."""

    def __init__(self, site: Site, api: KubernetesApi) -> None:
        self.site = site
        self.api = api
        self.release = read_release(site.release_file)
        self.store = FactsStore(PackFacts(MODEL_ID, **FACTS))
        self.few = asyncio.Semaphore(6)  # the machine has few cores

    def life(self, faulty: FaultyCluster | None = None) -> Operator:
        return Operator(self.api, faulty or FaultyCluster(self.api), self.store, self.release, self.site.namespace)

    async def until_ready(self, name: str, life: Operator) -> None:
        """Reconcile until Ready and with nothing left to write. Raises AssertionError after some minutes."""
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            outcome = await life.reconcile(ModelKey(self.site.namespace, name))
            if outcome.ready and not outcome.writes:
                return
            await asyncio.sleep(0.2)
        raise AssertionError(f"{name} did not get ready: {self.site.model(name).get('status')}")


async def with_kubelet(site: Site, work: Awaitable[object]) -> None:
    """Play the kubelet until the work is done; a failure of the player ends the work."""
    done = asyncio.Event()

    async def play() -> None:
        while not done.is_set():
            await asyncio.to_thread(advance, site)
            await asyncio.sleep(0.3)

    async with asyncio.TaskGroup() as group:
        group.create_task(play())
        await work
        done.set()


@contextlib.asynccontextmanager
async def api_of(site: Site, client: Callable[[Connection], ApiClient] | None = None) -> AsyncIterator[KubernetesApi]:
    """The API server as the operator calls it."""
    connection = await load_connection(str(site.kubeconfig))
    made = ApiClient(connection.configuration) if client is None else client(connection)
    async with KubernetesApi(made, fence=lambda: None) as api:
        yield api


def wait_until_ready(site: Site, name: str) -> None:
    def holds() -> bool:
        advance(site)
        return is_ready(site, name)

    wait(holds, 120, lambda: str(site.model(name)))


def converges(site: Site, name: str) -> None:
    """A PrunedModel made now gets Ready."""
    site.create("prunedmodels", pruned_model(name))
    wait_until_ready(site, name)
