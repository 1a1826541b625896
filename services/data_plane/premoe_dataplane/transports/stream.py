"""Fetch over gRPC: one stream of frames for many blobs. The way that always works, at a fifth of a wire's speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import grpc
from premoe.experts.v1 import experts_pb2 as pb
from premoe_servicekit.errors import rpc_errors

from premoe_dataplane import frames
from premoe_dataplane.frames import Frame
from premoe_dataplane.plan import Scheme
from premoe_dataplane.transports.base import Landed, Part
from premoe_dataplane.watched import messages
from premoe_dataplane.wire import experts_to_wire
from premoe_runtime.formats.errors import CorruptData, Unavailable
from premoe_runtime.formats.pieces import PIECE_BYTES, piece

METHOD = "/premoe.experts.v1.ExpertStoreService/Fetch"
IDLE_S = 10.0
_LONGEST_S = 3600.0
"""Of one stream. A receiver may take its time; silence of the sender is what ends a stream early."""


class StreamTransport:
    """Implements Transport for ``grpc``: a source's ``url`` is the lease that it is read under, or empty.

    Raises what the store answers, and CorruptData when it sends other frames than were asked for. A store of before
    ``FetchRequest.offset`` sends whole blobs; what is not wanted of them is dropped.
    """

    scheme: Scheme = "grpc"

    def __init__(
        self, channel: grpc.Channel, peer: str, model_id: Callable[[], str], *, idle_s: float = IDLE_S
    ) -> None:
        self._fetch: grpc.UnaryStreamMultiCallable[pb.FetchRequest, Frame] = channel.unary_stream(
            METHOD, request_serializer=pb.FetchRequest.SerializeToString, response_deserializer=frames.decode
        )
        self._peer, self._model_id, self._idle_s = peer, model_id, idle_s

    def read(self, parts: Sequence[Part], landed: Landed, stopped: Callable[[], bool]) -> None:
        for group in _streams(parts):
            self._stream(group, landed, stopped)

    def close(self) -> None:
        """The channel is its owner's."""

    def _stream(self, parts: Sequence[Part], landed: Landed, stopped: Callable[[], bool]) -> None:
        first = parts[0]
        request = pb.FetchRequest(
            model_id=self._model_id(),
            experts=experts_to_wire(part.blob.expert for part in parts),
            lease_id=first.source.url,
            offset=piece(first.pieces[0], first.blob.num_bytes).offset,
        )
        receiving = _Receiving(parts, landed, self._peer, request.offset)
        with rpc_errors(self._peer):
            call = self._fetch(request, timeout=_LONGEST_S)
            with closing(messages(call, stopped, self._idle_s, self._peer)) as received:
                for frame in received:
                    receiving.put(frame)
                    if receiving.over:
                        return
        raise Unavailable(f"{self._peer} ended the stream with {receiving.missing} blobs missing", reason="STREAM_CUT")


class _Receiving:
    """The frames of one stream: each blob from its first byte, or ``offset`` for the first one, to its last."""

    def __init__(self, parts: Sequence[Part], landed: Landed, peer: str, offset: int) -> None:
        self._parts, self._landed, self._peer = parts, landed, peer
        self._number = 0
        self._begin = offset
        self._at: int | None = None
        """Bytes of the blob that have come; None before its first frame."""
        self._left = set(parts[0].pieces)

    @property
    def missing(self) -> int:
        return len(self._parts) - self._number

    @property
    def over(self) -> bool:
        """Whether nothing of what may still come is wanted."""
        last = self._number == len(self._parts) - 1
        return self._number == len(self._parts) or (last and not self._left)

    def put(self, frame: Frame) -> None:
        part = self._parts[self._number]
        expected = (0, self._begin) if self._at is None else (self._at,)
        if frame.index != self._number or frame.offset not in expected:
            raise CorruptData(f"{self._peer}: frame {frame.index}+{frame.offset} out of order", reason="FRAME_ORDER")
        num_bytes = part.blob.num_bytes
        self._at = frame.offset + len(frame.data)
        if self._at > num_bytes:
            raise CorruptData(
                f"{self._peer}: {part.blob.expert} is longer than the manifest says", reason="FRAME_LENGTH"
            )
        for index in self._touched(frame):
            where = piece(index, num_bytes)
            start, end = max(where.offset, frame.offset), min(where.end, self._at)
            part.into[start:end] = frame.data[start - frame.offset : end - frame.offset]
            if self._at >= where.end:
                self._left.remove(index)
                self._landed(part, index)
        if self._at == num_bytes:
            self._next()

    def _touched(self, frame: Frame) -> Iterator[int]:
        """Pieces still wanted of which the frame has bytes."""
        if len(frame.data):
            end = frame.offset + len(frame.data)
            for index in range(frame.offset // PIECE_BYTES, (end - 1) // PIECE_BYTES + 1):
                if index in self._left:
                    yield index

    def _next(self) -> None:
        self._number += 1
        self._at, self._begin = None, 0
        self._left = set(self._parts[self._number].pieces) if self._number < len(self._parts) else set()


def _streams(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts by stream: only the first blob of one may begin anywhere but at its start."""
    begun = [part for part in parts if part.pieces[0] != 0]
    whole = [part for part in parts if part.pieces[0] == 0]
    groups = [[part] for part in begun]
    if whole:
        groups = [*groups[:-1], [*groups[-1], *whole]] if groups else [whole]
    return groups
