"""Which replica acts: a Lease, and the fence that keeps a replica from writing once the Lease may be another's.

The holder renews it. Before every write it checks how long ago the last successful renewal *began*; past the fence it
writes nothing and ends. Another replica takes the Lease only after the longer duration, counted on its own clock from
when it last saw the Lease change, so clocks need not agree.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from premoe_operator.kube.cluster import ApiFailure, Cluster, FenceClosed
from premoe_operator.kube.kinds import LEASE
from premoe_operator.kube.objects import Json

_log = logging.getLogger(__name__)


ANOTHER = "another replica"
"""Whoever was quicker, before its name was read."""


class LeaseLost(Exception):
    """Another replica has the Lease, or ours could not be renewed in time; the process must end."""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """In seconds; ``renew_s < fence_s < duration_s``."""

    renew_s: float
    fence_s: float
    duration_s: float


class Lease:
    """One side of the Lease ``namespace/name``. ``clock`` only grows.

    ``owners``: references that it gets; with them it is made where there is none, else it must exist already.
    """

    def __init__(
        self,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes,
        *,
        owners: Callable[[], list[Json]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._owners = owners
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._times = times
        self._clock = clock
        self._renewed_at: float | None = None
        self._unanswered = False
        """Whether a claim was sent whose answer never came: the Lease may be ours without our knowing."""
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0

    @property
    def is_held(self) -> bool:
        """Whether this replica may write now."""
        return self._renewed_at is not None and self._clock() - self._renewed_at < self._times.fence_s

    def check(self) -> None:
        """The fence. Raises FenceClosed."""
        if not self.is_held:
            raise FenceClosed("the Lease was not renewed in time")

    async def acquire(self, cluster: Cluster) -> None:
        """Wait until this replica has the Lease."""
        said = ""
        while True:
            try:
                holder = await self.attempt(cluster)
            except ApiFailure as failure:
                holder = f"unknown: {failure.message}"
            if holder == self._identity:
                _log.info("acting: lease %s/%s is ours", self._namespace, self._name)
                return
            if holder != said:
                _log.info("standing by: lease %s/%s is held by %s", self._namespace, self._name, holder)
                said = holder
            await asyncio.sleep(self._times.renew_s)

    async def keep(self, cluster: Cluster) -> None:
        """Renew until that fails for too long. Raises LeaseLost."""
        while True:
            await asyncio.sleep(self._times.renew_s)
            try:
                # Less than the fence: a connection that hangs must leave time for another try.
                async with asyncio.timeout(self._times.fence_s / 3):
                    holder = await self.attempt(cluster)
            except (ApiFailure, TimeoutError) as failure:
                _log.warning("lease not renewed: %s", str(failure) or "the API server did not answer in time")
                holder = self._identity
            if holder != self._identity:
                self._renewed_at = None
                raise LeaseLost(f"{holder} has the Lease")
            if not self.is_held:
                raise LeaseLost("the Lease could not be renewed in time")

    async def release(self, cluster: Cluster) -> None:
        """Let another replica act at once. Does nothing when the Lease is not ours."""
        if not (self.is_held or self._unanswered):
            return
        self._renewed_at = None
        try:
            # Nobody waits for long for a process that ends.
            async with asyncio.timeout(self._times.fence_s / 3):
                lease = await cluster.get(LEASE, self._namespace, self._name)
                if lease is not None and _spec(lease).get("holderIdentity") == self._identity:
                    await cluster.replace({**lease, "spec": {**_spec(lease), "holderIdentity": ""}})
        except (ApiFailure, TimeoutError) as failure:
            _log.info("lease not released: %s", str(failure) or "the API server did not answer in time")

    async def attempt(self, cluster: Cluster) -> str:
        """Take or renew the Lease if it is free, expired or ours. Returns the holder; raises ApiFailure."""
        began = self._clock()
        lease = await cluster.get(LEASE, self._namespace, self._name)
        if lease is None and self._owners is None:
            raise ApiFailure(404, "NotFound", f"lease {self._namespace}/{self._name} does not exist")
        spec = _spec(lease or {})
        holder = str(spec.get("holderIdentity") or "")
        if holder and holder != self._identity and not self._has_expired(spec):
            self._renewed_at = None
            return holder
        self._unanswered = True
        try:
            await self._write(cluster, lease, self._claim(spec, holder))
            self._unanswered = False
        except ApiFailure as failure:
            self._unanswered = failure.code == 0
            if failure.code == 409:  # another was quicker; its name is read next time
                return holder if holder and holder != self._identity else ANOTHER
            raise
        self._renewed_at = began
        return self._identity

    async def _write(self, cluster: Cluster, lease: Json | None, spec: Json) -> None:
        owners = {} if self._owners is None else {"ownerReferences": self._owners()}
        if lease is None:
            metadata = {"name": self._name, "namespace": self._namespace, **owners}
            made = {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata, "spec": spec}
            await cluster.create(made)
        else:
            await cluster.replace({**lease, "metadata": {**lease["metadata"], **owners}, "spec": spec})

    def _has_expired(self, spec: Json) -> bool:
        seen = (str(spec.get("holderIdentity")), str(spec.get("renewTime")))
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()
        return self._clock() - self._seen_at >= self._times.duration_s

    def _claim(self, spec: Json, holder: str) -> Json:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_new = holder != self._identity
        return {
            **spec,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._times.duration_s)),
            "renewTime": now,
            "acquireTime": now if is_new else spec.get("acquireTime", now),
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + is_new,
        }


def _spec(lease: Json) -> Json:
    spec: Json = lease.get("spec") or {}
    return spec
