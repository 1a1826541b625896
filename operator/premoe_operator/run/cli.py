"""The `premoe-operator` process: settings, Lease, probes, and the controller while this replica acts."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from pathlib import Path

from kubernetes.aio.client import ApiClient
from premoe_servicekit.process import Process, run_process

from premoe_operator.api.release import read_release
from premoe_operator.kube.client import KubernetesApi
from premoe_operator.kube.cluster import ApiFailure, FenceClosed
from premoe_operator.kube.connection import load_connection
from premoe_operator.kube.kinds import PRUNED_MODEL
from premoe_operator.kube.lease import Lease, LeaseLost, LeaseTimes
from premoe_operator.run.controller import Controller
from premoe_operator.run.definition import check_definition
from premoe_operator.run.expert_store import GrpcExpertStore
from premoe_operator.run.metrics import Metrics
from premoe_operator.run.probes import Answer, ProbeServer, verdict
from premoe_operator.run.settings import OperatorSettings
from premoe_operator.run.workers import GrpcWorkers
from premoe_runtime.formats.errors import Unavailable

_log = logging.getLogger(__name__)

PROBE_CALL_S = 2.0
PROBED_NAME = "liveness-probe"
"""A name that no PrunedModel needs to have: a 404 is an answer too."""


def main() -> None:
    """Entry point."""
    run_process("premoe-operator", OperatorSettings, serve)


async def serve(settings: OperatorSettings, process: Process) -> None:
    """Stand by or act until a signal. Raises Unavailable when the Lease is lost, so that the process ends at once."""
    logging.getLogger("kopf").setLevel(logging.WARNING)  # a line for every event
    release = read_release(Path(settings.release_file))
    connection = await load_connection(settings.kubeconfig)
    metrics = Metrics()
    lease = _lease(settings)
    fence = lease.check if lease is not None else _no_fence
    async with (
        aclosing(connection),
        KubernetesApi(ApiClient(connection.configuration), fence=fence, on_call=metrics.on_call) as cluster,
        # Taking the Lease is the one write before it is ours; the API server's versions guard it.
        KubernetesApi(ApiClient(connection.configuration), fence=_no_fence) as unfenced,
    ):
        await _check_definition(unfenced)
        store = GrpcExpertStore(release.expert_store.address, timeout_s=settings.store_timeout_s, tls=process.tls)
        workers = GrpcWorkers(timeout_s=settings.worker_timeout_s, tls=process.tls)
        controller = Controller(settings, release, connection, cluster, store, workers, metrics)
        probes = _Probes(settings, lease, controller, unfenced, metrics)
        async with probes.server:
            process.ready(url=probes.server.url)
            process.serving = True
            try:
                await _act(lease, unfenced, controller, metrics, process)
            except (LeaseLost, FenceClosed) as error:
                raise Unavailable(str(error), reason="LEASE_LOST") from None
            finally:
                if lease is not None:
                    await lease.release(unfenced)


async def _act(
    lease: Lease | None, unfenced: KubernetesApi, controller: Controller, metrics: Metrics, process: Process
) -> None:
    """Wait for the Lease, then act and keep it."""
    if lease is None:
        metrics.is_leader.set(1)
        await controller.run(process.stopped, take_signals=process.listen)
        return
    stopping = asyncio.create_task(process.stopped.wait())
    waiting = asyncio.create_task(lease.acquire(unfenced))
    try:
        await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if process.stopped.is_set():
            return
        waiting.result()
        metrics.is_leader.set(1)
        ended = asyncio.Event()
        keeping = asyncio.create_task(lease.keep(unfenced))
        acting = asyncio.create_task(controller.run(ended, take_signals=process.listen))
        try:
            await asyncio.wait([keeping, acting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                keeping.result()
        finally:
            # Told, not cancelled: it may be ending already, and must not leave its watches behind.
            ended.set()
            try:
                await acting
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
    finally:
        waiting.cancel()
        stopping.cancel()
        await asyncio.gather(waiting, stopping, return_exceptions=True)


async def _check_definition(cluster: KubernetesApi) -> None:
    """Before this replica calls itself ready, so that the one before goes on acting. Raises InvalidInput."""
    try:
        check_definition(await cluster.openapi(PRUNED_MODEL))
    except ApiFailure as failure:
        _log.warning("not checked whether the definition of PrunedModel is new enough: %s", failure.message)


def _lease(settings: OperatorSettings) -> Lease | None:
    if not settings.lease_name:
        return None
    times = LeaseTimes(settings.lease_renew_s, settings.lease_fence_s, settings.lease_duration_s)
    return Lease(settings.namespace, settings.lease_name, settings.identity, times)


def _no_fence() -> None:
    """Without a Lease every write may go."""


class _Probes:
    """What the kubelet and Prometheus ask."""

    def __init__(
        self,
        settings: OperatorSettings,
        lease: Lease | None,
        controller: Controller,
        cluster: KubernetesApi,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._lease = lease
        self._controller = controller
        self._cluster = cluster
        self._metrics = metrics
        table = {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._text}
        self.server = ProbeServer(settings.http_host, settings.http_port, table)

    async def _livez(self) -> Answer:
        """Fails only when a watch is stale although the API server answers: then a restart helps."""
        stale = self._controller.stale_watch()
        if stale is None:
            return verdict(None)
        namespace = next(iter(self._settings.watch_namespaces), self._settings.namespace)
        # A connection kept from before may be as dead as the watches; it is closed, and the next one is new.
        for _ in range(2):
            try:
                async with asyncio.timeout(PROBE_CALL_S):
                    await self._cluster.get(PRUNED_MODEL, namespace, PROBED_NAME)
                return verdict(stale)
            except ApiFailure:
                break
            except TimeoutError:
                continue
        return verdict(None)

    async def _readyz(self) -> Answer:
        """A standby is ready to take over; the acting replica is ready once it has seen everything."""
        acts = self._lease is None or self._lease.is_held
        return verdict(None if self._controller.is_synced or not acts else "the first lists are not complete")

    async def _text(self) -> Answer:
        return Answer(True, self._metrics.text(), "text/plain; version=0.0.4; charset=utf-8")


if __name__ == "__main__":
    main()
