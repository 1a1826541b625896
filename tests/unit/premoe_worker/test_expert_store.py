"""The gRPC expert source against a store whose frames a test writes."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import blake3
import grpc
import pytest
from premoe.experts.v1 import experts_pb2, experts_pb2_grpc
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.deadlines import deadline
from premoe_servicekit.errors import to_status
from premoe_worker.adapters.expert_store import GrpcExpertSource
from premoe_worker.adapters.patience import Patience
from support.scripted_store import EarlierStore
from support.sources import MemorySource
from support.tiny import tiny_checkpoint

from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted, NotFound, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.fetch import Fetcher
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.host_tier import HostTier
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.serving.fetches import Delivered, Fetches, FetchOver, Need

FRAME = 5000
WANTED = (ExpertId(0, 3), ExpertId(1, 0), ExpertId(0, 1))
QUICK = Patience(tries=4, pause_s=0.01)
JOIN_S = 20.0
"""Far below the silence that the tests below would wait for otherwise."""

Script = Callable[["Store", experts_pb2.FetchRequest, Any], Iterator[experts_pb2.FetchResponse]]


@dataclass
class Store(EarlierStore):
    """Serves a memory source honestly, unless ``scripts`` (one a Fetch), ``frames`` or ``digest`` say otherwise."""

    source: MemorySource
    frames: list[experts_pb2.FetchResponse] | None = None
    digest: str | None = None
    scheme: str = "grpc"
    calls: list[str] = field(default_factory=list)
    scripts: deque[Script] = field(default_factory=deque)
    begun: threading.Event = field(default_factory=threading.Event)
    """Set once a script has nothing more to say."""
    seconds_left: list[float] = field(default_factory=list)
    """Of the deadlines of the calls."""

    def GetManifest(self, request: Any, context: Any) -> experts_pb2.GetManifestResponse:
        self.calls.append("GetManifest")
        manifest = self.source.manifest()
        return experts_pb2.GetManifestResponse(model_id=manifest.model_id, manifest=manifest.to_json())

    def Resolve(self, request: experts_pb2.ResolveRequest, context: Any) -> experts_pb2.ResolveResponse:
        self.calls.append("Resolve")
        self.seconds_left.append(context.time_remaining())
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
        self.seconds_left.append(context.time_remaining())
        if self.scripts:
            yield from self.scripts.popleft()(self, request, context)
            return
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
def served(store: Store, patience: Patience = QUICK, model_id: str = "") -> Iterator[GrpcExpertSource]:
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        experts_pb2_grpc.add_ExpertStoreServiceServicer_to_server(store, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            with blocking_channel(address) as channel:
                yield GrpcExpertSource(address, channel, model_id=model_id, patience=patience)
        finally:
            server.stop(0).wait()


def fetch(
    source: GrpcExpertSource, *, stop_after: int | None = None, cancelled: Callable[[], bool] = lambda: False
) -> tuple[dict[ExpertId, bytearray], list[ExpertId]]:
    """Everything that arrived, and what was reported as done."""
    size = source.manifest().layout.blob_bytes
    blobs: dict[ExpertId, bytearray] = {}
    done: list[ExpertId] = []

    def into(expert: ExpertId) -> memoryview:
        blobs[expert] = bytearray(size)
        return memoryview(blobs[expert])

    def enough() -> bool:
        return cancelled() or (stop_after is not None and len(done) >= stop_after)

    source.fetch(WANTED, into, lambda expert, checked: done.append(expert), enough)
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


def silent(store: Store, request: experts_pb2.FetchRequest, context: Any) -> Iterator[experts_pb2.FetchResponse]:
    """Half a blob, then nothing."""
    yield next(store.honest(request.experts))
    store.begun.set()
    while context.is_active():
        time.sleep(0.01)


def slow(store: Store, request: experts_pb2.FetchRequest, context: Any) -> Iterator[experts_pb2.FetchResponse]:
    """A byte now and then."""
    blob = store.source.blobs[WANTED[0]]
    for offset in range(len(blob)):
        if not context.is_active():
            return
        yield frame(0, offset, blob[offset : offset + 1])
        store.begun.set()
        time.sleep(0.05)


def gone(store: Store, request: experts_pb2.FetchRequest, context: Any) -> Iterator[experts_pb2.FetchResponse]:
    context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
    yield from ()


def busy(store: Store, request: experts_pb2.FetchRequest, context: Any) -> Iterator[experts_pb2.FetchResponse]:
    context.abort_with_status(to_status(Exhausted("too many readers", reason="QUEUE_FULL")))
    yield from ()


def full(store: Store, request: experts_pb2.FetchRequest, context: Any) -> Iterator[experts_pb2.FetchResponse]:
    context.abort_with_status(to_status(Exhausted("no room left", reason="DISK_FULL")))
    yield from ()


def one_blob(store: Store, request: experts_pb2.FetchRequest, context: Any) -> Iterator[experts_pb2.FetchResponse]:
    """One whole blob and the start of the next, then the end."""
    for each in store.honest(request.experts):
        yield each
        if each.index == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[Future[object]]:
    """``work`` on another thread."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(work)


@pytest.mark.parametrize("script", [silent, slow])
def test_a_fetch_is_cancelled_whatever_the_store_does(memory: MemorySource, script: Script) -> None:
    store, cancelled = Store(memory, scripts=deque([script])), threading.Event()
    with (
        served(store, Patience(idle_s=3600)) as source,
        beside(lambda: fetch(source, cancelled=cancelled.is_set)) as fetched,
    ):
        assert store.begun.wait(JOIN_S)
        cancelled.set()
        assert fetched.result(JOIN_S)[1] == []  # type: ignore[index]


def test_a_fetch_is_cancelled_while_it_connects(memory: MemorySource) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with blocking_channel(address) as channel:
            source = GrpcExpertSource(address, channel, patience=Patience(idle_s=3600))
            asked = threading.Event()

            def cancelled() -> bool:
                asked.set()
                return asked_long_enough.is_set()

            asked_long_enough = threading.Event()
            with beside(lambda: source.fetch(WANTED, lambda expert: memoryview(b""), print, cancelled)) as fetched:
                assert asked.wait(JOIN_S)
                asked_long_enough.set()
                assert fetched.result(JOIN_S) is None


def test_silence_is_a_fault_that_names_the_store(memory: MemorySource) -> None:
    store = Store(memory, scripts=deque([silent, silent]))
    with served(store, Patience(idle_s=0.2, tries=2, pause_s=0.01)) as source:
        source.manifest()
        with pytest.raises(Unavailable, match=r"expert store 127\.0\.0\.1.* sent nothing for 0\.2 seconds") as caught:
            fetch(source)
    assert caught.value.reason == "PEER_SILENT"


def test_a_silent_store_is_not_waited_for_by_two_patiences_multiplied(memory: MemorySource) -> None:
    """The store accepts and never answers: what fetches for a request asks no more than the source itself."""
    store, inbox = Store(memory, scripts=deque([silent] * 9)), SimpleQueue[Delivered | FetchOver]()
    shape = SlotShape.of(memory.manifest(), slots=4)
    arena = HostArena(shape.blob_bytes, 4 * shape.blob_bytes)
    need, error = Need(frozenset(WANTED)), None
    with served(store, Patience(idle_s=0.2, tries=2, pause_s=0.01)) as source:
        fetcher = Fetcher(source, shape, arena)
        fetches = Fetches(HostTier(arena), fetcher, inbox.put, (0.0,) * 4, patience_s=0.3)
        while error is None:
            fetches.update(need, WANTED, first=True, context=None, now=time.monotonic())
            message = inbox.get(timeout=JOIN_S)
            assert isinstance(message, FetchOver)
            error = fetches.over(message, time.monotonic())
    assert isinstance(error, Unavailable)
    assert error.reason == "PEER_SILENT"
    assert store.calls.count("Resolve") == 2


def test_the_receivers_own_time_is_not_the_stores_silence(memory: MemorySource) -> None:
    idle_s = 0.5
    with served(Store(memory), Patience(idle_s=idle_s, tries=1)) as source:
        size = source.manifest().layout.blob_bytes
        source.fetch(WANTED[:2], lambda expert: memoryview(bytearray(size)), lambda *one: time.sleep(2 * idle_s))


def test_a_silent_fetch_does_not_hold_up_another(memory: MemorySource) -> None:
    store, cancelled = Store(memory, scripts=deque([silent])), threading.Event()
    with (
        served(store, Patience(idle_s=3600)) as source,
        beside(lambda: fetch(source, cancelled=cancelled.is_set)) as held_up,
    ):
        assert store.begun.wait(JOIN_S)
        assert fetch(source)[1] == list(WANTED)
        assert not held_up.done()
        cancelled.set()


def test_closing_ends_what_is_under_way(memory: MemorySource) -> None:
    store = Store(memory, scripts=deque([silent]))
    with served(store, Patience(idle_s=3600)) as source, beside(lambda: fetch(source)) as fetched:
        assert store.begun.wait(JOIN_S)
        source.close()
        error = fetched.exception(JOIN_S)
        assert isinstance(error, Unavailable)
        assert error.reason == "STOPPING"
        with pytest.raises(Unavailable, match="stopping"):
            fetch(source)


@pytest.mark.parametrize("scripts", [[gone, gone], [busy], [silent], [one_blob, one_blob], [gone, one_blob, gone]])
def test_what_may_pass_is_tried_again(memory: MemorySource, scripts: list[Script]) -> None:
    store = Store(memory, scripts=deque(scripts))
    with served(store, Patience(idle_s=0.5, tries=4, pause_s=0.01, longest_pause_s=0.05)) as source:
        source.manifest()
        blobs, done = fetch(source)
    assert done == list(WANTED)
    assert {expert: bytes(blob) for expert, blob in blobs.items()} == {one: memory.blobs[one] for one in WANTED}


def test_room_is_asked_for_once_a_blob(memory: MemorySource) -> None:
    asked: list[ExpertId] = []
    with served(
        Store(memory, scripts=deque([one_blob, silent])), Patience(idle_s=0.5, tries=4, pause_s=0.01)
    ) as source:
        size = source.manifest().layout.blob_bytes

        def into(expert: ExpertId) -> memoryview:
            asked.append(expert)
            return memoryview(bytearray(size))

        source.fetch(WANTED, into, lambda expert, checked: None)
    assert asked == list(WANTED)


@pytest.mark.parametrize("script", [gone, busy])
def test_it_gives_up_in_the_end(memory: MemorySource, script: Script) -> None:
    store = Store(memory, scripts=deque([script] * 9))  # the channel makes four of each try
    with served(store, Patience(tries=2, pause_s=0.01, longest_pause_s=0.05)) as source, pytest.raises(Unavailable):
        fetch(source)
    assert store.calls.count("Resolve") == 2


def test_what_will_not_pass_is_not_tried_again(memory: MemorySource) -> None:
    store = Store(memory, scripts=deque([full]))
    with served(store) as source, pytest.raises(Unavailable, match="no room left"):
        fetch(source)
    assert store.calls.count("Resolve") == 1


def lost(store: Store, request: experts_pb2.FetchRequest, context: Any) -> Iterator[experts_pb2.FetchResponse]:
    context.abort_with_status(to_status(NotFound("no pack here, in file:///packs", reason="MODEL_NOT_FOUND")))
    yield from ()


def test_what_the_store_has_lost_is_no_mistake_of_whoever_sent_a_prompt(memory: MemorySource) -> None:
    with served(Store(memory, scripts=deque([lost]))) as source, pytest.raises(CorruptData) as caught:
        fetch(source)
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert "no longer has what its manifest names; run premoe pack verify" in str(caught.value)
    assert "file://" not in str(caught.value)


def test_the_receivers_own_lack_of_room_stays_what_it_is(memory: MemorySource) -> None:
    def into(expert: ExpertId) -> memoryview:
        raise Exhausted("the host tier is full", reason="HOST_TIER_FULL")

    with served(Store(memory)) as source, pytest.raises(Exhausted, match="host tier"):
        source.fetch(WANTED, into, lambda expert, checked: None)


def test_no_request_s_deadline_bounds_a_fetch(memory: MemorySource) -> None:
    store = Store(memory)
    with served(store) as source, deadline(0):
        assert fetch(source)[1] == list(WANTED)
        assert source.read_file("skeleton/config.json") == memory.files["skeleton/config.json"]
    assert min(store.seconds_left) > 1


def test_another_models_manifest_is_refused(memory: MemorySource) -> None:
    asked = "blake3:" + "f" * 64
    with served(Store(memory), model_id=asked) as source, pytest.raises(Conflict) as caught:
        source.manifest()
    assert caught.value.reason == "WRONG_MODEL"
    assert memory.manifest().model_id[:16] in str(caught.value)
    assert "f" * 16 in str(caught.value)
    with served(Store(memory), model_id=memory.manifest().model_id) as source:
        assert source.manifest().model_id == memory.manifest().model_id
