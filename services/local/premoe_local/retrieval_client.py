"""The retrieval service as commands call it. Imported by those only that do: gRPC takes a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from premoe.patterns.v1 import patterns_pb2 as pb
from premoe.patterns.v1 import patterns_pb2_grpc
from premoe_servicekit.clients import Timeouts, blocking_channel
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.tls import Tls

TIMEOUT_S = 600.0
"""A large set takes a while to be indexed."""


class Retrieval:
    """One retrieval service. Every method raises what it answers, and Unavailable when it does not."""

    def __init__(self, stub: patterns_pb2_grpc.PatternServiceStub, peer: str) -> None:
        self._stub = stub
        self._peer = peer

    def publish(self, set_id: str) -> tuple[int, bool]:
        """Index a set; returns its exemplars, and whether they were there before."""
        with rpc_errors(self._peer):
            answer = self._stub.PublishSet(pb.PublishSetRequest(set_id=set_id))
        return answer.exemplars, answer.already

    def delete(self, set_id: str) -> bool:
        """Take a set out of the index; False when it was not there."""
        with rpc_errors(self._peer):
            return bool(self._stub.DeleteSet(pb.DeleteSetRequest(set_id=set_id)).existed)

    def signatures(self, weights_id: str) -> tuple[list[pb.RecordedSignature], int]:
        """All recorded ones of these weights, oldest first, and how many are kept at most."""
        found: list[pb.RecordedSignature] = []
        while True:
            after = found[-1].number if found else 0
            with rpc_errors(self._peer):
                page = self._stub.ListSignatures(pb.ListSignaturesRequest(weights_id=weights_id, after=after))
            if not page.signatures:
                return found, page.capacity
            found += page.signatures


@contextmanager
def retrieval(address: str, tls: Tls | None) -> Iterator[Retrieval]:
    """The service at ``host:port``."""
    with blocking_channel(address, tls=tls, timeouts=Timeouts(unary_s=TIMEOUT_S)) as channel:
        yield Retrieval(patterns_pb2_grpc.PatternServiceStub(channel), f"retrieval {address}")
