"""The expert store over gRPC, as the runtime's `ExpertSource`.

Every fetch is one Resolve, which says where each blob may be read, and one stream of frames per scheme. The runtime
checks each blob against the manifest's digest; here only lengths and order are checked.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence

import blake3
import grpc
from premoe.experts.v1 import experts_pb2, experts_pb2_grpc
from premoe_servicekit.deadlines import bounded
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.telemetry import tracer

from premoe_runtime.formats.errors import CorruptData, NotFound, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import Manifest

_GRPC = "grpc"
_TIER_NAMES = {experts_pb2.TIER_REDIS: "redis", experts_pb2.TIER_OBJECT: "object"}


class GrpcExpertSource:
    """Implements `premoe_runtime.residency.source.ExpertSource`. Safe to call from several threads."""

    def __init__(self, address: str, channel: grpc.Channel, *, model_id: str = "", timeout_s: float = 300.0) -> None:
        self._peer = f"expert store {address}"
        self._stub = experts_pb2_grpc.ExpertStoreServiceStub(channel)
        self._asked_model = model_id
        self._timeout_s = timeout_s
        self._manifest: Manifest | None = None
        self._lock = threading.Lock()

    def manifest(self) -> Manifest:
        with self._lock:
            if self._manifest is None:
                with rpc_errors(self._peer):
                    request = experts_pb2.GetManifestRequest(model_id=self._asked_model)
                    response = self._stub.GetManifest(request, timeout=bounded(self._timeout_s))
                self._manifest = Manifest.parse(response.manifest, where=f"{self._peer}: manifest")
            return self._manifest

    def read_file(self, path: str) -> bytes:
        manifest = self.manifest()
        expected = next((file for file in manifest.skeleton if file.path == path), None)
        if expected is None:
            raise NotFound(f"the pack has no skeleton file {path}", reason="FILE_NOT_FOUND")
        data = bytearray()
        with rpc_errors(self._peer):
            request = experts_pb2.FetchFileRequest(model_id=manifest.model_id, path=path)
            for frame in self._stub.FetchFile(request, timeout=bounded(self._timeout_s)):
                data += frame.data
        if len(data) != expected.num_bytes or blake3.blake3(data).hexdigest() != expected.digest:
            raise CorruptData(f"{self._peer}: {path} does not match its digest; run premoe pack verify")
        return bytes(data)

    def fetch(
        self,
        experts: Sequence[ExpertId],
        into: Callable[[ExpertId], memoryview],
        done: Callable[[ExpertId], None],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        if not experts:
            return
        lease_id = self._resolve(experts)
        if cancelled():
            return
        attributes: dict[str, str | int] = {"premoe.fetch.scheme": _GRPC, "premoe.fetch.blobs": len(experts)}
        with tracer().start_as_current_span("fetch grpc", attributes=attributes) as span:
            tiers = self._stream(experts, lease_id, into, done, cancelled)
            span.set_attribute("premoe.fetch.bytes", sum(tiers.values()))
            for tier, count in sorted(tiers.items()):
                span.set_attribute(f"premoe.fetch.bytes.{tier}", count)

    def _resolve(self, experts: Sequence[ExpertId]) -> str:
        """The lease under which all of them may be read by Fetch."""
        manifest = self.manifest()
        with tracer().start_as_current_span("resolve", attributes={"premoe.fetch.blobs": len(experts)}):
            request = experts_pb2.ResolveRequest(model_id=manifest.model_id, experts=_ids(experts))
            with rpc_errors(self._peer):
                response = self._stub.Resolve(request, timeout=bounded(self._timeout_s))
        if len(response.blobs) != len(experts):
            raise CorruptData(f"{self._peer}: {len(response.blobs)} blobs resolved, {len(experts)} asked")
        for expert, blob in zip(experts, response.blobs, strict=True):
            if blob.digest != manifest.digest(expert):
                raise CorruptData(f"{self._peer}: {expert} has another digest than in the manifest")
            if not any(source.scheme == _GRPC for source in blob.sources):
                raise Unavailable(f"{self._peer}: {expert} cannot be read over gRPC", reason="NO_SOURCE")
        return response.lease_id

    def _stream(
        self,
        experts: Sequence[ExpertId],
        lease_id: str,
        into: Callable[[ExpertId], memoryview],
        done: Callable[[ExpertId], None],
        cancelled: Callable[[], bool],
    ) -> Counter[str]:
        """Copy the frames into their blobs; returns bytes per tier."""
        tiers: Counter[str] = Counter()
        request = experts_pb2.FetchRequest(model_id=self.manifest().model_id, experts=_ids(experts), lease_id=lease_id)
        with rpc_errors(self._peer):
            call = self._stub.Fetch(request, timeout=bounded(self._timeout_s))
            try:
                frames = _Frames(experts, into, done, self._peer)
                for frame in call:
                    if cancelled():
                        return tiers
                    frames.put(frame)
                    tiers[_TIER_NAMES.get(frame.tier, "other")] += len(frame.data)
            finally:
                call.cancel()
        frames.check_complete()
        return tiers


class _Frames:
    """Puts the frames of a Fetch into place: blobs in the order asked, each from its first byte to its last."""

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
        self._index = 0
        self._offset = 0
        self._blob: memoryview | None = None

    def put(self, frame: experts_pb2.FetchResponse) -> None:
        if frame.index != self._index or frame.offset != self._offset or self._index >= len(self._experts):
            raise CorruptData(f"{self._peer}: frame {frame.index}+{frame.offset} out of order", reason="FRAME_ORDER")
        expert = self._experts[self._index]
        if self._blob is None:
            self._blob = self._into(expert)
        end = self._offset + len(frame.data)
        if end > len(self._blob):
            raise CorruptData(f"{self._peer}: {expert} is longer than the manifest says", reason="FRAME_LENGTH")
        self._blob[self._offset : end] = frame.data
        self._offset = end
        if end == len(self._blob):
            self._blob, self._offset, self._index = None, 0, self._index + 1
            self._done(expert)

    def check_complete(self) -> None:
        if self._index != len(self._experts):
            left = len(self._experts) - self._index
            raise Unavailable(f"{self._peer} ended the stream with {left} blobs missing", reason="STREAM_CUT")


def _ids(experts: Sequence[ExpertId]) -> list[experts_pb2.ExpertId]:
    return [experts_pb2.ExpertId(layer=expert.layer, expert=expert.expert) for expert in experts]
