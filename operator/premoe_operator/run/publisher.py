"""Tells the gateway where workers of other namespaces are: a ConfigMap in the release's namespace, which it mounts.

The chart makes the ConfigMap and gives the operator the right to patch it, and no other. The gateway needs no rights.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable

from premoe_operator.children.services import worker_target
from premoe_operator.kube.cluster import ApiFailure, Cluster
from premoe_operator.kube.kinds import CONFIG_MAP
from premoe_operator.kube.objects import ModelKey

KEY = "workers"
"""Of the ConfigMap: one gRPC target a line."""
GATHER_S = 0.5
"""News come in crowds."""
LOOK_S = 60.0
"""Whoever else changes the ConfigMap has it put right after this time."""

_log = logging.getLogger(__name__)


class WorkersPublisher:
    """For one event loop. ``models`` are PrunedModels, and whether this release serves them; None: not known yet, so
    that what is published about them stays.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        models: Callable[[], Iterable[tuple[ModelKey, bool | None]]],
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._models = models
        self._news = asyncio.Event()
        self._problem = ""

    def news(self) -> None:
        """Some PrunedModel has changed, come or gone, or it is known who serves it."""
        self._news.set()

    async def keep(self) -> None:
        """Publish for ever. Raises FenceClosed."""
        while True:
            self._news.clear()
            await self.publish()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()
                    await asyncio.sleep(GATHER_S)
            except TimeoutError:
                continue

    async def publish(self) -> None:
        """Write what is not there yet. A failure is said once; the next look comes anyway."""
        try:
            found = await self._cluster.get(CONFIG_MAP, self._namespace, self._name)
            if found is None:
                self._say(f"there is no ConfigMap {self._namespace}/{self._name}; upgrade the release")
                return
            published = (found.get("data") or {}).get(KEY)
            wanted = "".join(f"{target}\n" for target in self.targets((published or "").splitlines()))
            if published != wanted:
                await self._cluster.merge_patch(CONFIG_MAP, self._namespace, self._name, {"data": {KEY: wanted}})
                _log.info("published the workers of %d PrunedModels", wanted.count("\n"))
        except ApiFailure as failure:
            self._say(failure.message)
            return
        self._problem = ""

    def targets(self, published: Collection[str]) -> list[str]:
        """Of all models of other namespaces; those of the release's own are found by a Service of the chart."""
        models = sorted((key, worker_target(key), ours) for key, ours in self._models())
        return [
            target
            for key, target, ours in models
            if key.namespace != self._namespace and (ours or (ours is None and target in published))
        ]

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("the gateway does not hear of workers in other namespaces: %s", problem)
        self._problem = problem
