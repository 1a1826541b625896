"""The acting replica: fills the cache, keeps it fresh by kopf's watches, and works the queue off.

Lists find what watches miss: all kinds at the start and every ``resync_s``, one kind when its watch had to start anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

import kopf
from opentelemetry.trace import Status, StatusCode
from premoe_servicekit.telemetry import tracer

from premoe_operator.api.names import LABEL_MODEL
from premoe_operator.api.release import Release
from premoe_operator.kube.cache import Cache
from premoe_operator.kube.cluster import ApiFailure, Cluster, FenceClosed
from premoe_operator.kube.connection import Connection
from premoe_operator.kube.kinds import CERTIFICATE, CHILDREN, PRUNED_MODEL, Kind
from premoe_operator.kube.lease import LeaseTimes
from premoe_operator.kube.objects import ModelKey, model_key
from premoe_operator.kube.watches import WatchClock, build_registry, closing_generators, configure, kopf_session
from premoe_operator.run.metrics import Metrics
from premoe_operator.run.namespaces import NamespaceClaims
from premoe_operator.run.observer import ExpertStore
from premoe_operator.run.preload_watch import PreloadWatch, Workers
from premoe_operator.run.publisher import WorkersPublisher
from premoe_operator.run.queue import WorkQueue
from premoe_operator.run.reconciler import Outcome, Reconciler, inventory
from premoe_operator.run.settings import OperatorSettings
from premoe_runtime.formats.errors import Unavailable

START_RETRY_S = 2.0

_log = logging.getLogger(__name__)


class Controller:
    """Everything that runs while this replica acts. ``run`` ends when ``stop`` is set."""

    def __init__(
        self,
        settings: OperatorSettings,
        release: Release,
        connection: Connection,
        cluster: Cluster,
        store: ExpertStore,
        workers: Workers,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._cluster = cluster
        self._metrics = metrics
        self._namespaces: Sequence[str | None] = settings.watch_namespaces or (None,)
        self._unwatched = set() if settings.watch_certificates else {CERTIFICATE}
        self._cache = Cache()
        self._queue: WorkQueue[ModelKey] = WorkQueue(retry_max_s=settings.retry_max_s)
        self._preloads = PreloadWatch(workers, self._queue.add, soon_s=settings.poll_s)
        self._reconciler = Reconciler(
            cluster,
            store,
            self._preloads.look,
            self._cache,
            release,
            poll_s=settings.poll_s,
            unwatched=self._unwatched,
        )
        self._publisher = WorkersPublisher(cluster, settings.namespace, settings.workers_config_map, self._served)
        claim_s = settings.release_lease_s
        self._claims = NamespaceClaims(
            cluster,
            settings.namespace,
            LeaseTimes(claim_s / 3, claim_s * 2 / 3, claim_s),
            models=self._cache.models,
            concern=self._concern,
            news=self._publisher.news,
        )
        self._clock = WatchClock(self._on_list)
        self._collections = {
            f"/{kind.path(namespace)}": (kind, namespace)
            for kind in (PRUNED_MODEL, *self._kinds)
            for namespace in self._namespaces
        }
        self._listed_once: set[str] = set()
        self._relisted: asyncio.Queue[str] = asyncio.Queue()
        self.is_synced = False
        metrics.show(lambda: inventory(self._cache.models()), self._clock.ages_s, lambda: len(self._queue))

    def stale_watch(self) -> str | None:
        """What to say when a watch has been silent for too long; ``None`` when all are alive."""
        for path, age_s in self._clock.ages_s().items():
            if age_s > self._settings.watch_stale_s:
                return f"the watch of {path} has been silent for {age_s:.0f} s"
        return None

    @property
    def _kinds(self) -> tuple[Kind, ...]:
        """Kinds of children that are listed and watched."""
        return tuple(kind for kind in CHILDREN if kind not in self._unwatched)

    async def run(self, stop: asyncio.Event, *, take_signals: Callable[[], None] = lambda: None) -> None:
        """Raises what ends the operator: FenceClosed, Unavailable when kopf gave up, or a fault of kopf's.

        ``take_signals`` is called when kopf has taken SIGTERM and SIGINT for itself, to have them back.
        """
        if not await self._synced(stop):
            return
        tasks = [asyncio.create_task(self._work()) for _ in range(self._settings.concurrency)]
        tasks += [asyncio.create_task(self._resync_regularly()), asyncio.create_task(self._resync_relisted())]
        if self._settings.lease_name:
            tasks.append(asyncio.create_task(self._claims.keep()))
        if self._settings.workers_config_map:
            tasks.append(asyncio.create_task(self._publisher.keep()))
        kopf_stop = asyncio.Event()
        self._clock.expect(self._collections)
        informers = asyncio.create_task(self._run_kopf(kopf_stop, take_signals))
        stopping = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([*tasks, informers, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if informers in done:
                raise Unavailable("the watches ended by themselves", reason="WATCHES_ENDED")
        finally:
            # Our tasks first: kopf cancels whatever else runs when it ends.
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
            await self._preloads.close()
            kopf_stop.set()
            await asyncio.gather(informers, return_exceptions=True)

    async def _run_kopf(self, stop: asyncio.Event, take_signals: Callable[[], None]) -> None:
        settings = kopf.OperatorSettings()
        configure(settings, self._kinds, inactivity_s=self._settings.watch_inactivity_s)
        registry = build_registry(
            self._kinds, self._cache, self._concern, lambda: kopf_session(self._connection, self._clock)
        )
        existing = asyncio.all_tasks()
        async with closing_generators():
            spawned = await kopf.spawn_tasks(
                registry=registry,
                settings=settings,
                standalone=True,
                clusterwide=not self._settings.watch_namespaces,
                namespaces=self._settings.watch_namespaces,
                stop_flag=stop,
            )
            take_signals()
            await kopf.run_tasks(spawned, ignored=existing)

    def _concern(self, models: Iterable[ModelKey]) -> None:
        for model in models:
            self._queue.add(model)
        self._publisher.news()

    def _served(self) -> list[tuple[ModelKey, bool | None]]:
        """The PrunedModels, and whether our release serves them; without a Lease it serves all that it sees."""
        keys = map(model_key, self._cache.models())
        return [(key, not self._settings.lease_name or self._claims.is_ours(key.namespace)) for key in keys]

    async def _synced(self, stop: asyncio.Event) -> bool:
        """Whether the first lists are complete; False: ``stop`` came before."""
        tasks = syncing, stopping = asyncio.create_task(self._first_sync()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if syncing.done():
                syncing.result()
            return not stopping.done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _first_sync(self) -> None:
        while True:
            try:
                for path in tuple(self._collections):
                    if path in self._collections:  # a kind that is missing takes its other namespaces along
                        await self._list_first(path)
            except ApiFailure as failure:
                _log.warning("first list: %s", failure.message)
                await asyncio.sleep(START_RETRY_S)
            else:
                # Those without children are listed by nothing else.
                self._concern(map(model_key, self._cache.models()))
                self.is_synced = True
                return

    async def _list_first(self, path: str) -> None:
        """List one collection; Certificates only where cert-manager's API is: most models need none."""
        try:
            self._concern(await self._list(path))
        except ApiFailure as failure:
            if not failure.is_missing_kind or self._collections[path][0] is not CERTIFICATE:
                raise
            _log.warning(
                "this API server has no cert-manager Certificates, so they are not watched; models that need one wait"
            )
            self._unwatched.add(CERTIFICATE)
            self._collections = {at: of for at, of in self._collections.items() if of[0] is not CERTIFICATE}

    async def _list(self, path: str) -> set[ModelKey]:
        kind, namespace = self._collections[path]
        selector = "" if kind is PRUNED_MODEL else LABEL_MODEL
        return self._cache.replace(kind, namespace, await self._cluster.list(kind, namespace, label_selector=selector))

    def _on_list(self, path: str) -> None:
        """Kopf has listed a collection: the first time at its start, later because its watch had to start anew."""
        if path not in self._collections:
            return
        if path in self._listed_once:
            self._relisted.put_nowait(path)
        self._listed_once.add(path)

    async def _resync_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.resync_s)
            for path in self._collections:
                await self._resync(path)

    async def _resync_relisted(self) -> None:
        while True:
            await self._resync(await self._relisted.get())

    async def _resync(self, path: str) -> None:
        try:
            missed = await self._list(path)
        except ApiFailure as failure:
            _log.warning("resync of %s: %s", path, failure.message)
            return
        if missed:
            _log.info("resync of %s: news for %d PrunedModels", path, len(missed))
            self._metrics.missed_events.inc(len(missed))
        self._concern(missed)

    async def _work(self) -> None:
        while True:
            model = await self._queue.get()
            started = time.monotonic()
            outcome = await self._reconcile(model)
            self._metrics.reconcile_seconds.observe(time.monotonic() - started)
            if outcome is None or outcome.again:
                self._queue.failed(model)
            else:
                self._queue.done(model, again_after_s=outcome.requeue_after_s)

    async def _other_release(self, model: ModelKey) -> str:
        """The release that serves the model's namespace in place of ours; empty: ours, or nobody needs to."""
        if not self._settings.lease_name or self._cache.model(model) is None:
            return ""
        return await self._claims.holder(model.namespace)

    async def _reconcile(self, model: ModelKey) -> Outcome | None:
        """One reconcile in its span; ``None`` when it failed and must come again."""
        attributes = {"k8s.namespace.name": model.namespace, "premoe.model": model.name}
        with tracer().start_as_current_span("reconcile", attributes=attributes) as span:
            try:
                holder = await self._other_release(model)
                outcome = await (
                    self._reconciler.stand_back(model, holder) if holder else self._reconciler.reconcile(model)
                )
            except ApiFailure as failure:
                _log.warning("%s/%s: %s", model.namespace, model.name, failure.message)
                span.set_status(Status(StatusCode.ERROR, failure.message))
                self._metrics.reconciles.labels("api_failure").inc()
                return None
            except FenceClosed:
                raise
            except Exception as error:
                # A fault of ours with one PrunedModel must not stop the work on all others.
                _log.exception("%s/%s: reconcile failed", model.namespace, model.name)
                span.record_exception(error)
                span.set_status(Status(StatusCode.ERROR, str(error)))
                self._metrics.reconciles.labels("fault").inc()
                return None
            span.set_attribute("premoe.writes", outcome.writes)
            self._metrics.reconciles.labels("again" if outcome.again else "ok").inc()
            return outcome
