"""The expert store over gRPC, as the runtime's `ExpertSource`.

Every fetch is one Resolve, which says where each blob may be read, and one stream of frames per scheme. The runtime
checks each blob against the manifest's digest; here only lengths and order are checked.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import blake3
import grpc
from premoe.experts.v1 import experts_pb2, experts_pb2_grpc
from premoe_dataplane.stopped import Stopped
from premoe_dataplane.watched import answer, messages
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.deadlines import no_deadline
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.faults import own_fault
from premoe_servicekit.telemetry import tracer
from premoe_servicekit.tls import Tls

from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted, InvalidInput, NotFound, Unavailable
from premoe_runtime.formats.ids import ExpertId, bare_digest
from premoe_runtime.formats.manifest import Manifest
from premoe_worker.adapters.patience import Patience

log = logging.getLogger(__name__)

_GRPC = "grpc"
_VERIFY = "run premoe pack verify"
_TIER_NAMES = {experts_pb2.TIER_REDIS: "redis", experts_pb2.TIER_OBJECT: "object"}
_LONGEST_S = 3600.0
"""Of one stream. A receiver may take its time; silence of the sender is what ends a stream early."""


@contextmanager
def open_source(address: str, tls: Tls | None, model_id: str) -> Iterator[GrpcExpertSource]:
    """A source over a channel of its own; at the end what is under way is stopped."""
    with (
        blocking_channel(address, tls=tls) as opened,
        closing(GrpcExpertSource(address, opened, model_id=model_id)) as source,
    ):
        yield source


class GrpcExpertSource:
    """Implements `premoe_runtime.residency.source.ExpertSource`. Safe to call from several threads, also at once.

    Calls run under bounds of their own, never under the deadline of a request in hand: several requests may wait for
    one fetch. ``cancelled`` is also called from a thread beside the caller's; the other callbacks are not, and none is
    called, nor any memory written, once ``fetch`` has returned or raised.
    """

    def __init__(
        self, address: str, channel: grpc.Channel, *, model_id: str = "", patience: Patience = Patience()
    ) -> None:
        self._peer = f"expert store {address}"
        self._stub = experts_pb2_grpc.ExpertStoreServiceStub(channel)
        self._asked_model = bare_digest(model_id)
        self._patience = patience
        self._manifest: Manifest | None = None
        self._closed = threading.Event()

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
        done: Callable[[ExpertId], None],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """See `ExpertSource.fetch`. After an error that may pass, what is missing is asked for again."""
        delivery = _Delivery(experts, into, done, self._peer)

        def stopped() -> bool:
            return self._closed.is_set() or cancelled()

        with no_deadline(), self._unless_closed(), self._promised():
            if experts:
                self._patience.insist(lambda: self._deliver(delivery, stopped), stopped, lambda: delivery.delivered)

    def close(self) -> None:
        """End what is under way: it raises Unavailable (STOPPING) within a second. The channel stays open."""
        self._closed.set()

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

    def _deliver(self, delivery: _Delivery, stopped: Callable[[], bool]) -> None:
        """One try to bring all that is missing."""
        experts = delivery.missing
        lease_id = self._resolve(experts, stopped)
        request = experts_pb2.FetchRequest(
            model_id=self._known_manifest(stopped).model_id, experts=_ids(experts), lease_id=lease_id
        )
        tiers: Counter[str] = Counter()
        attributes: dict[str, str | int] = {"premoe.fetch.scheme": _GRPC, "premoe.fetch.blobs": len(experts)}
        with tracer().start_as_current_span("fetch grpc", attributes=attributes) as span, rpc_errors(self._peer):
            call = self._stub.Fetch(request, timeout=_LONGEST_S)
            delivery.begin()
            with closing(messages(call, stopped, self._patience.idle_s, self._peer)) as frames:
                for frame in frames:
                    delivery.put(frame)
                    tiers[_TIER_NAMES.get(frame.tier, "other")] += len(frame.data)
            span.set_attribute("premoe.fetch.bytes", sum(tiers.values()))
            for tier, count in sorted(tiers.items()):
                span.set_attribute(f"premoe.fetch.bytes.{tier}", count)
        delivery.check_complete()

    def _resolve(self, experts: Sequence[ExpertId], stopped: Callable[[], bool]) -> str:
        """The lease under which all of them may be read by Fetch."""
        manifest = self._known_manifest(stopped)
        with tracer().start_as_current_span("resolve", attributes={"premoe.fetch.blobs": len(experts)}):
            request = experts_pb2.ResolveRequest(model_id=manifest.model_id, experts=_ids(experts))
            with rpc_errors(self._peer):
                response = answer(self._stub.Resolve.future(request, timeout=self._patience.idle_s), stopped)
        if len(response.blobs) != len(experts):
            raise CorruptData(f"{self._peer}: {len(response.blobs)} blobs resolved, {len(experts)} asked")
        for expert, blob in zip(experts, response.blobs, strict=True):
            if blob.digest != manifest.digest(expert):
                raise CorruptData(f"{self._peer}: {expert} has another digest than in the manifest")
            if not any(source.scheme == _GRPC for source in blob.sources):
                raise Unavailable(f"{self._peer}: {expert} cannot be read over gRPC", reason="NO_SOURCE")
        return response.lease_id


class _Delivery:
    """The blobs of one fetch, in the order asked, over as many streams as it takes.

    Every stream starts with the first blob that is not whole yet, and brings each from its first byte to its last.
    """

    def __init__(
        self,
        experts: Sequence[ExpertId],
        into: Callable[[ExpertId], memoryview],
        done: Callable[[ExpertId], None],
        peer: str,
    ) -> None:
        self._experts = experts
        self._into = into
        self._done = done
        self._peer = peer
        self._room: memoryview | None = None
        """Of the blob that comes next; asked for once, however often it is begun."""
        self._offset = 0
        self._first = 0
        """Blobs delivered before this stream."""
        self.delivered = 0

    @property
    def missing(self) -> Sequence[ExpertId]:
        return self._experts[self.delivered :]

    def begin(self) -> None:
        """A new stream, for what is missing now."""
        self._first, self._offset = self.delivered, 0

    def put(self, frame: experts_pb2.FetchResponse) -> None:
        due = self.delivered - self._first
        if frame.index != due or frame.offset != self._offset or not self.missing:
            raise CorruptData(f"{self._peer}: frame {frame.index}+{frame.offset} out of order", reason="FRAME_ORDER")
        expert = self._experts[self.delivered]
        if self._room is None:
            self._room = self._into(expert)
        end = self._offset + len(frame.data)
        if end > len(self._room):
            raise CorruptData(f"{self._peer}: {expert} is longer than the manifest says", reason="FRAME_LENGTH")
        self._room[self._offset : end] = frame.data
        self._offset = end
        if end == len(self._room):
            self._room, self._offset = None, 0
            self.delivered += 1
            self._done(expert)

    def check_complete(self) -> None:
        if self.missing:
            raise Unavailable(
                f"{self._peer} ended the stream with {len(self.missing)} blobs missing", reason="STREAM_CUT"
            )


def _ids(experts: Sequence[ExpertId]) -> list[experts_pb2.ExpertId]:
    return [experts_pb2.ExpertId(layer=expert.layer, expert=expert.expert) for expert in experts]
