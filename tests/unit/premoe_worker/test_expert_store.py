"""The gRPC expert source against a store whose frames a test writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3
import grpc
import pytest
from premoe.experts.v1 import experts_pb2, experts_pb2_grpc
from premoe_servicekit.clients import blocking_channel
from premoe_worker.adapters.expert_store import GrpcExpertSource
from support.sources import MemorySource
from support.tiny import tiny_checkpoint

from premoe_runtime.formats.errors import CorruptData, NotFound, Unavailable
from premoe_runtime.formats.ids import ExpertId

FRAME = 5000
WANTED = (ExpertId(0, 3), ExpertId(1, 0), ExpertId(0, 1))


@dataclass
class Store(experts_pb2_grpc.ExpertStoreServiceServicer):
    """Serves a memory source honestly, unless ``frames`` or ``digest`` says otherwise."""

    source: MemorySource
    frames: list[experts_pb2.FetchResponse] | None = None
    digest: str | None = None
    scheme: str = "grpc"
    calls: list[str] = field(default_factory=list)

    def GetManifest(self, request: Any, context: Any) -> experts_pb2.GetManifestResponse:
        self.calls.append("GetManifest")
        manifest = self.source.manifest()
        return experts_pb2.GetManifestResponse(model_id=manifest.model_id, manifest=manifest.to_json())

    def Resolve(self, request: experts_pb2.ResolveRequest, context: Any) -> experts_pb2.ResolveResponse:
        self.calls.append("Resolve")
        manifest = self.source.manifest()
        blobs = [
            experts_pb2.BlobSources(
                expert=expert,
                digest=self.digest or manifest.digest(ExpertId(expert.layer, expert.expert)),
                sources=[experts_pb2.Source(scheme=self.scheme)],
            )
            for expert in request.experts
        ]
        return experts_pb2.ResolveResponse(blobs=blobs, lease_id="lease")

    def Fetch(self, request: experts_pb2.FetchRequest, context: Any) -> Iterator[experts_pb2.FetchResponse]:
        self.calls.append(f"Fetch {request.lease_id}")
        yield from self.honest(request.experts) if self.frames is None else self.frames

    def FetchFile(self, request: experts_pb2.FetchFileRequest, context: Any) -> Iterator[experts_pb2.FetchFileResponse]:
        data = self.source.files[request.path]
        for offset in range(0, len(data), FRAME):
            yield experts_pb2.FetchFileResponse(data=data[offset : offset + FRAME])

    def honest(self, experts: Sequence[experts_pb2.ExpertId]) -> Iterator[experts_pb2.FetchResponse]:
        for index, expert in enumerate(experts):
            blob = self.source.blobs[ExpertId(expert.layer, expert.expert)]
            for offset in range(0, len(blob), FRAME):
                data = blob[offset : offset + FRAME]
                yield experts_pb2.FetchResponse(index=index, offset=offset, data=data, tier=experts_pb2.TIER_OBJECT)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> MemorySource:
    return MemorySource(tiny_checkpoint(Path(tmp_path_factory.mktemp("tiny"))))


@contextmanager
def served(store: Store) -> Iterator[GrpcExpertSource]:
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        experts_pb2_grpc.add_ExpertStoreServiceServicer_to_server(store, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            with blocking_channel(address) as channel:
                yield GrpcExpertSource(address, channel)
        finally:
            server.stop(0).wait()


def fetch(
    source: GrpcExpertSource, *, stop_after: int | None = None
) -> tuple[dict[ExpertId, bytearray], list[ExpertId]]:
    """Everything that arrived, and what was reported as done."""
    size = source.manifest().layout.blob_bytes
    blobs: dict[ExpertId, bytearray] = {}
    done: list[ExpertId] = []

    def into(expert: ExpertId) -> memoryview:
        blobs[expert] = bytearray(size)
        return memoryview(blobs[expert])

    source.fetch(WANTED, into, done.append, lambda: stop_after is not None and len(done) >= stop_after)
    return blobs, done


def test_one_resolve_and_one_stream_bring_every_byte(memory: MemorySource) -> None:
    store = Store(memory)
    with served(store) as source:
        blobs, done = fetch(source)
    assert done == list(WANTED)
    assert {expert: bytes(blob) for expert, blob in blobs.items()} == {one: memory.blobs[one] for one in WANTED}
    assert store.calls == ["GetManifest", "Resolve", "Fetch lease"]


def test_a_cancelled_fetch_ends_early_without_an_error(memory: MemorySource) -> None:
    with served(Store(memory)) as source:
        _, done = fetch(source, stop_after=1)
    assert done == [WANTED[0]]


def frame(index: int, offset: int, data: bytes) -> experts_pb2.FetchResponse:
    return experts_pb2.FetchResponse(index=index, offset=offset, data=data)


BROKEN: dict[str, tuple[list[experts_pb2.FetchResponse], type[Exception], str]] = {
    "nothing at all": ([], Unavailable, "3 blobs missing"),
    "half a blob": ([frame(0, 0, b"x" * 10)], Unavailable, "3 blobs missing"),
    "another blob first": ([frame(1, 0, b"x")], CorruptData, "out of order"),
    "a gap": ([frame(0, 0, b"x"), frame(0, 2, b"x")], CorruptData, "out of order"),
    "too long": ([frame(0, 0, b"x" * 10**6)], CorruptData, "longer than the manifest says"),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN.keys())
def test_broken_streams(
    memory: MemorySource, case: tuple[list[experts_pb2.FetchResponse], type[Exception], str]
) -> None:
    frames, kind, message = case
    with served(Store(memory, frames=frames)) as source, pytest.raises(kind, match=message):
        fetch(source)


def test_a_store_that_speaks_of_other_blobs_is_refused(memory: MemorySource) -> None:
    with served(Store(memory, digest="0" * 64)) as source, pytest.raises(CorruptData, match="another digest"):
        fetch(source)
    with served(Store(memory, scheme="carrier-pigeon")) as source, pytest.raises(Unavailable, match="cannot be read"):
        fetch(source)


def test_files_are_checked(memory: MemorySource) -> None:
    with served(Store(memory)) as source:
        path = "skeleton/config.json"
        data = source.read_file(path)
        assert blake3.blake3(data).hexdigest() == blake3.blake3(memory.files[path]).hexdigest()
        with pytest.raises(NotFound, match="no skeleton file"):
            source.read_file("skeleton/nope")
        honest = memory.files[path]
        memory.files[path] = honest[:-1] + b"?"
        try:
            with pytest.raises(CorruptData, match="does not match its digest"):
                source.read_file(path)
        finally:
            memory.files[path] = honest


def test_nobody_there() -> None:
    with blocking_channel("127.0.0.1:1") as channel, pytest.raises(Unavailable, match="does not answer"):
        GrpcExpertSource("127.0.0.1:1", channel).manifest()
