"""A lease on blobs in the store's cache: prolonged while they are read, given back at the end."""

from __future__ import annotations

import time
from types import TracebackType

import grpc
from premoe.experts.v1 import experts_pb2, experts_pb2_grpc

_CALL_S = 5.0


class Lease:
    """Nobody waits for its calls, and none of them matters enough to fail anything: a lease also ends by itself.

    Stores of before leases answer UNIMPLEMENTED, which is the same to us.
    """

    def __init__(
        self, stub: experts_pb2_grpc.ExpertStoreServiceStub, lease_id: str, expires_at: float, now: float
    ) -> None:
        """``expires_at`` and ``now`` are unix seconds; the store's clock may be another one."""
        self._stub, self._id = stub, lease_id
        self._half_s = (expires_at - now) / 2
        self._renew_at = time.monotonic() + self._half_s if lease_id and self._half_s > 0 else float("inf")
        self._renewing: grpc.Future[experts_pb2.RenewResponse] | None = None

    def tend(self) -> None:
        """Ask for more time when half of it is gone. Call now and then."""
        if time.monotonic() >= self._renew_at and (self._renewing is None or self._renewing.done()):
            self._renew_at = time.monotonic() + self._half_s
            request = experts_pb2.RenewRequest(lease_id=self._id)
            self._renewing = self._stub.Renew.future(request, timeout=_CALL_S)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._id:
            self._stub.Release.future(experts_pb2.ReleaseRequest(lease_id=self._id), timeout=_CALL_S)
