"""The expert store, as the runtime's `ExpertSource`.

Every fetch is one Resolve over gRPC, which says where each blob may be read, and what the fetcher makes of that: bytes
from files, HTTP, Redis, object storage or streams, each blob checked before it is handed over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

import blake3
import grpc
from premoe.experts.v1 import experts_pb2, experts_pb2_grpc
from premoe_dataplane.delivery import Delivery
from premoe_dataplane.plan import BlobPlan, SwapPlan
from premoe_dataplane.stopped import Stopped
from premoe_dataplane.transports.http import PLAN_EXPIRED
from premoe_dataplane.watched import answer, messages
from premoe_dataplane.wire import experts_to_wire, plan_of_wire
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.deadlines import no_deadline
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.faults import own_fault
from premoe_servicekit.telemetry import tracer
from premoe_servicekit.tls import Tls

from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted, InvalidInput, NotFound, Unavailable
from premoe_runtime.formats.ids import ExpertId, bare_digest
from premoe_runtime.formats.manifest import Manifest
from premoe_worker.adapters.lease import Lease
from premoe_worker.adapters.patience import Patience
from premoe_worker.adapters.reading import Reading, direct_plan, told_folder

log = logging.getLogger(__name__)

Says = Callable[[], bool]
_VERIFY = "run premoe pack verify"
_LONGEST_S = 3600.0
"""Of one stream. A receiver may take its time; silence of the sender is what ends a stream early."""


@contextmanager
def open_source(
    address: str, tls: Tls | None, model_id: str, reading: Reading = Reading()
) -> Iterator[GrpcExpertSource]:
    """A source over a channel of its own; at the end what is under way is stopped."""
    with (
        blocking_channel(address, tls=tls) as opened,
        closing(GrpcExpertSource(address, opened, model_id=model_id, reading=replace(reading, tls=tls))) as source,
    ):
        yield source


class GrpcExpertSource:
    """Implements `premoe_runtime.residency.source.ExpertSource`. Safe to call from several threads, also at once.

    Calls run under bounds of their own, never under the deadline of a request in hand: several requests may wait for
    one fetch. ``into`` and ``done`` are called from reading threads; none is called, nor any memory written, once
    ``fetch`` has returned or raised.
    """

    def __init__(
        self,
        address: str,
        channel: grpc.Channel,
        *,
        model_id: str = "",
        patience: Patience = Patience(),
        reading: Reading = Reading(),
    ) -> None:
        self._peer = f"expert store {address}"
        self._stub = experts_pb2_grpc.ExpertStoreServiceStub(channel)
        self._asked_model = bare_digest(model_id)
        self._patience = patience
        self._manifest: Manifest | None = None
        self._closed = threading.Event()
        self._folder = ""
        """Of the pack in object storage, once a store has told it."""
        self._direct = bool(reading.object_store_url) and "object" in reading.schemes
        self.fetcher = reading.fetcher(channel, self._peer, lambda: self.manifest().model_id, idle_s=patience.idle_s)

    def manifest(self) -> Manifest:
        """Raises Conflict (WRONG_MODEL) when the store sends the manifest of another model than was asked for."""
        with no_deadline(), self._unless_closed():
            return self._known_manifest(self._closed.is_set)

    def read_file(self, path: str) -> bytes:
        manifest = self.manifest()
        expected = next((file for file in manifest.skeleton if file.path == path), None)
        if expected is None:
            raise NotFound(f"the pack has no skeleton file {path}", reason="FILE_NOT_FOUND")
        request = experts_pb2.FetchFileRequest(model_id=manifest.model_id, path=path)
        with no_deadline(), self._unless_closed(), self._promised():
            data = self._patience.insist(lambda: self._read(request), self._closed.is_set)
        if len(data) != expected.num_bytes or blake3.blake3(data).hexdigest() != expected.digest:
            raise CorruptData(f"{self._peer}: {path} does not match its digest; {_VERIFY}")
        return data

    def fetch(
        self,
        experts: Sequence[ExpertId],
        into: Callable[[ExpertId], memoryview],
        done: Callable[[ExpertId, bool], None],
        cancelled: Callable[[], bool] = lambda: False,
        urgent: Callable[[], bool] = lambda: True,
    ) -> None:
        """See `ExpertSource.fetch`. After an error that may pass, what is missing is asked for again.

        With object storage at hand that is read instead when no store answers.
        """

        def stopped() -> bool:
            return self._closed.is_set() or cancelled()

        with no_deadline(), self._unless_closed(), self._promised():
            if experts:
                num_bytes = self._known_manifest(stopped).layout.blob_bytes
                self._insist(Delivery(experts, num_bytes, into, lambda expert: done(expert, True)), stopped, urgent)

    def close(self) -> None:
        """End what is under way: it raises Unavailable (STOPPING) within a second. The channel stays open."""
        self._closed.set()
        self.fetcher.close()

    @contextmanager
    def _promised(self) -> Iterator[None]:
        """The store's errors as faults of the server: whoever sent a prompt asked for no blob, and filled no store."""
        try:
            yield
        except Exhausted as error:
            if not isinstance(error.__cause__, grpc.RpcError):
                raise  # the receiver's own
            raise Unavailable(f"{self._peer}: {error}", reason=error.reason) from error
        except (NotFound, InvalidInput) as error:
            log.error("%s: %s", self._peer, error)
            raise own_fault(error, f"{self._peer} no longer has what its manifest names; {_VERIFY}") from error

    @contextmanager
    def _unless_closed(self) -> Iterator[None]:
        """Leave the block when its calls are stopped. Raises Unavailable when that is because we are closed."""
        try:
            yield
        except Stopped:
            if self._closed.is_set():
                raise Unavailable("the worker is stopping", reason="STOPPING") from None

    def _known_manifest(self, stopped: Callable[[], bool]) -> Manifest:
        if self._manifest is None:
            request = experts_pb2.GetManifestRequest(model_id=self._asked_model)
            with rpc_errors(self._peer):
                response = answer(self._stub.GetManifest.future(request, timeout=self._patience.idle_s), stopped)
            manifest = Manifest.parse(response.manifest, where=f"{self._peer}: manifest")
            if self._asked_model not in ("", manifest.model_id):
                raise Conflict(
                    f"{self._peer} sent the manifest of model {manifest.model_id[:16]}…, "
                    f"asked for {self._asked_model[:16]}…; check its packs with premoe pack verify",
                    reason="WRONG_MODEL",
                )
            self._manifest = manifest
        return self._manifest

    def _read(self, request: experts_pb2.FetchFileRequest) -> bytes:
        data = bytearray()
        with rpc_errors(self._peer):
            call = self._stub.FetchFile(request, timeout=_LONGEST_S)
            with closing(messages(call, self._closed.is_set, self._patience.idle_s, self._peer)) as frames:
                for frame in frames:
                    data += frame.data
        return bytes(data)

    def _insist(self, delivery: Delivery, stopped: Says, urgent: Says) -> None:
        try:
            self._patience.insist(lambda: self._deliver(delivery, stopped, urgent), stopped, lambda: delivery.delivered)
        except Unavailable as error:
            if not self._direct:
                raise
            log.warning("%s; reading from object storage", error)
            self.fetcher.fetch(
                direct_plan(self._known_manifest(stopped), delivery.missing, self._folder), delivery, stopped
            )

    def _deliver(self, delivery: Delivery, stopped: Says, urgent: Says) -> None:
        """One try to bring all that is missing; a plan that got old on the way is no failure."""
        while True:
            asked_at = time.time()
            plan = self._resolve(delivery.missing, stopped, urgent())
            with Lease(self._stub, plan.lease_id, plan.expires_at, asked_at) as lease:

                def unwanted(lease: Lease = lease) -> bool:
                    lease.tend()
                    return stopped()

                try:
                    self.fetcher.fetch(plan, delivery, unwanted, urgent=urgent)
                    return
                except Unavailable as error:
                    if error.reason != PLAN_EXPIRED:
                        raise

    def _resolve(self, experts: Sequence[ExpertId], stopped: Says, urgent: bool) -> SwapPlan:
        """Where all of them may be read; what is read by Fetch, under the plan's lease."""
        manifest = self._known_manifest(stopped)
        purpose = experts_pb2.PURPOSE_DEMAND if urgent else experts_pb2.PURPOSE_PREFETCH
        request = experts_pb2.ResolveRequest(
            model_id=manifest.model_id, experts=experts_to_wire(experts), schemes=self.fetcher.schemes, purpose=purpose
        )
        with tracer().start_as_current_span("resolve", attributes={"premoe.fetch.blobs": len(experts)}):
            with rpc_errors(self._peer):
                response = answer(self._stub.Resolve.future(request, timeout=self._patience.idle_s), stopped)
        plan = plan_of_wire(response, experts, manifest.layout.blob_bytes, self._peer)
        for blob in plan.blobs:
            if blob.digest != manifest.digest(blob.expert):
                raise CorruptData(f"{self._peer}: {blob.expert} has another digest than in the manifest")
        self._folder = self._folder or told_folder(plan, manifest)
        return replace(plan, blobs=[_leased(blob, plan.lease_id) for blob in plan.blobs])


def _leased(blob: BlobPlan, lease_id: str) -> BlobPlan:
    sources = (replace(one, url=lease_id) if one.scheme == "grpc" else one for one in blob.sources)
    return replace(blob, sources=tuple(sources))
