"""An expert store as commands call it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe_dataplane.wire import experts_to_wire
from premoe_servicekit.clients import Timeouts, blocking_channel
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.tls import Tls

from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import Manifest

WATCH_S = 365 * 86_400.0
"""People end a watch, not a deadline."""


class Counts(NamedTuple):
    """What became of experts that were to be prefetched."""

    present: int
    under_way: int
    refused: int


class State(NamedTuple):
    """Experts of a pack in the store's cache, and on their way there."""

    present: int
    under_way: int


class ExpertStore:
    """One pack of one store, the only one where ``model_id`` is empty.

    Every method raises what the store answers, and Unavailable when it does not.
    """

    def __init__(self, stub: experts_pb2_grpc.ExpertStoreServiceStub, peer: str, model_id: str) -> None:
        self._stub, self._peer, self._model_id = stub, peer, model_id

    def manifest(self) -> Manifest:
        """Raises CorruptData for one that cannot be read."""
        with rpc_errors(self._peer):
            answer = self._stub.GetManifest(pb.GetManifestRequest(model_id=self._model_id))
        return Manifest.parse(answer.manifest, where=f"manifest of {self._peer}")

    def prefetch(self, experts: Sequence[ExpertId]) -> Counts:
        """Begin to bring experts, the first ones rather than the last; does not wait."""
        request = pb.PrefetchRequest(model_id=self._model_id, experts=experts_to_wire(experts))
        with rpc_errors(self._peer):
            answer = self._stub.Prefetch(request)
        return Counts(answer.present, answer.under_way, answer.refused)

    def state(self) -> State:
        """What the cache holds now."""
        call = self._stub.WatchStore(pb.WatchStoreRequest(model_id=self._model_id))
        try:
            with rpc_errors(self._peer):
                for event in call:
                    if event.HasField("progress"):
                        return State(event.progress.present, event.progress.under_way)
        finally:
            call.cancel()
        raise self._ended()

    def watch(self) -> Iterator[pb.WatchStoreResponse]:
        """Events from now on, first of all the progress. Raises Unavailable when the store ends."""
        with rpc_errors(self._peer):
            yield from self._stub.WatchStore(pb.WatchStoreRequest(model_id=self._model_id))
        raise self._ended()

    def _ended(self) -> Unavailable:
        return Unavailable(f"{self._peer} has ended; ask again when it is back", reason="UNAVAILABLE")


@contextmanager
def expert_store(address: str, tls: Tls | None, model_id: str) -> Iterator[ExpertStore]:
    """The store at ``host:port``."""
    with blocking_channel(address, tls=tls, timeouts=Timeouts(stream_s=WATCH_S)) as channel:
        yield ExpertStore(experts_pb2_grpc.ExpertStoreServiceStub(channel), f"expert store {address}", model_id)
