"""Fetch as a store answers it, of blobs that a test gives."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc

from premoe_runtime.formats.ids import ExpertId
from support.scripted_store import EarlierStore

FRAME = 300_000


@dataclass
class FrameStore(EarlierStore):
    """``blobs`` by digest, ``names`` their digests. Without ``offsets`` it is one of before FetchRequest.offset."""

    offsets: bool = True
    blobs: dict[str, bytes] = field(default_factory=dict)
    names: dict[ExpertId, str] = field(default_factory=dict)

    def GetManifest(self, request: pb.GetManifestRequest, context: Any) -> pb.GetManifestResponse:
        raise NotImplementedError

    def Resolve(self, request: pb.ResolveRequest, context: Any) -> pb.ResolveResponse:
        raise NotImplementedError

    def Fetch(self, request: pb.FetchRequest, context: Any) -> Iterator[pb.FetchResponse]:
        assert request.lease_id == "lease"
        offset = request.offset if self.offsets else 0
        for index, expert in enumerate(request.experts):
            data = self.blobs[self.names[ExpertId(expert.layer, expert.expert)]]
            for start in range(offset, len(data), FRAME):
                yield pb.FetchResponse(index=index, offset=start, data=data[start : start + FRAME], tier=pb.TIER_NODE)
            offset = 0

    def FetchFile(self, request: pb.FetchFileRequest, context: Any) -> Iterator[pb.FetchFileResponse]:
        raise NotImplementedError

    @contextmanager
    def served(self) -> Iterator[str]:
        """Its address, until the end of the block."""
        with ThreadPoolExecutor(8) as threads:
            server = grpc.server(threads)
            experts_pb2_grpc.add_ExpertStoreServiceServicer_to_server(self, server)
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            server.start()
            try:
                yield address
            finally:
                server.stop(0).wait()
