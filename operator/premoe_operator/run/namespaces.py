"""Which release serves a namespace: a Lease in it, so that two releases that watch it do not undo each other's work.

The release holds it, whichever replica acts. It belongs to the namespace's PrunedModels, and goes with the last one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from premoe_operator.kube.cluster import ApiFailure, Cluster
from premoe_operator.kube.lease import ANOTHER, Lease, LeaseTimes
from premoe_operator.kube.objects import Json, ModelKey, age, model_key, uid_of

LEASE_NAME = "premoe-release"
OWNERS_MAX = 100

_log = logging.getLogger(__name__)


class NamespaceClaims:
    """For one event loop. ``models`` are all PrunedModels; ``concern`` is told those whose namespace changes hands, and
    ``news`` that a holder is known now, or is another one.
    """

    def __init__(
        self,
        cluster: Cluster,
        release: str,
        times: LeaseTimes,
        *,
        models: Callable[[], list[Json]],
        concern: Callable[[Iterable[ModelKey]], object],
        news: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._release = release
        self._times = times
        self._models = models
        self._concern = concern
        self._news = news
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        self._others: dict[str, str] = {}
        """Releases that serve namespaces in place of ours, as these were last looked at; empty: ours does."""
        self._looking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def holder(self, namespace: str) -> str:
        """The release that serves the namespace in place of ours; empty: ours. Raises ApiFailure."""
        async with self._looking[namespace]:
            if self._lease(namespace).is_held:
                return ""
            return self._others.get(namespace) or await self._look(namespace)

    def is_ours(self, namespace: str) -> bool | None:
        """Whether our release serves the namespace; None: nobody has looked yet."""
        holder = self._others.get(namespace)
        return None if holder is None else not holder

    async def keep(self) -> None:
        """Renew what is ours, and see whether what is not has become free."""
        while True:
            await asyncio.sleep(self._times.renew_s)
            await self.renew()

    async def renew(self) -> None:
        """One round over the namespaces that have PrunedModels."""
        present: defaultdict[str, list[ModelKey]] = defaultdict(list)
        for key in map(model_key, self._models()):
            present[key.namespace].append(key)
        for gone in self._leases.keys() - present.keys():
            del self._leases[gone]
            self._others.pop(gone, None)
            self._looking.pop(gone, None)
        for namespace, models in present.items():
            async with self._looking[namespace]:
                before = self._others.get(namespace, "")
                try:
                    after = await self._look(namespace)
                except ApiFailure as failure:
                    _log.warning("lease %s/%s: %s", namespace, LEASE_NAME, failure.message)
                    continue
            if after != before:
                _log.info("namespace %s is served by %s", namespace, after or "this release")
                self._concern(models)

    async def _look(self, namespace: str) -> str:
        lease = self._lease(namespace)
        holder = await lease.attempt(self._cluster)
        if holder == ANOTHER:
            holder = await lease.attempt(self._cluster)
        if holder == ANOTHER:
            raise ApiFailure(409, "Conflict", f"lease {namespace}/{LEASE_NAME} is changing hands")
        other = "" if holder == self._release else holder
        if self._others.get(namespace) != other:
            self._others[namespace] = other
            self._news()
        return other

    def _lease(self, namespace: str) -> Lease:
        if namespace not in self._leases:
            self._leases[namespace] = Lease(
                namespace,
                LEASE_NAME,
                self._release,
                self._times,
                owners=lambda: self._owners(namespace),
                clock=self._clock,
            )
        return self._leases[namespace]

    def _owners(self, namespace: str) -> list[Json]:
        models = sorted((model for model in self._models() if model_key(model).namespace == namespace), key=age)
        return [
            {
                "apiVersion": model["apiVersion"],
                "kind": model["kind"],
                "name": model["metadata"]["name"],
                "uid": uid_of(model),
            }
            for model in models[:OWNERS_MAX]
        ]
