"""Blocking gRPC calls that end when nobody wants their answer any more, and streams that fall silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol, TypeVar

import grpc

from premoe_dataplane.stopped import Stopped
from premoe_runtime.formats.errors import Unavailable

T = TypeVar("T")
M = TypeVar("M", covariant=True)

POLL_S = 0.2
"""How soon it is seen that a call is no longer wanted."""


class Stream(Protocol[M]):
    """What a stub returns for a server stream."""

    def __next__(self) -> M: ...

    def __iter__(self) -> Iterator[M]: ...

    def cancel(self) -> object: ...


def answer(call: grpc.Future[T], stopped: Callable[[], bool]) -> T:
    """The answer of a unary call. Raises Stopped soon after ``stopped()`` turns true, and what the call raises."""
    while not stopped():
        try:
            return call.result(timeout=POLL_S)
        except grpc.FutureTimeoutError:
            continue
    call.cancel()
    raise Stopped


def messages(call: Stream[T], stopped: Callable[[], bool], idle_s: float, peer: str) -> Generator[T, None, None]:
    """The messages of a server stream. The call is cancelled when the iterator is closed.

    Raises Stopped as ``answer`` does, Unavailable (PEER_SILENT) when the reader has waited ``idle_s`` seconds for one
    message, and what the call raises. ``stopped`` is called from another thread.
    """
    watch = _Watch(call, stopped, idle_s)
    watch.thread.start()
    try:
        while True:
            watch.waiting_since = time.monotonic()
            message = next(call, None)
            watch.waiting_since = None
            if message is None:
                return
            if stopped():
                raise Stopped
            yield message
    except grpc.RpcError:
        if watch.silent:
            raise Unavailable(f"{peer} sent nothing for {idle_s:g} seconds", reason="PEER_SILENT") from None
        if watch.stopped:
            raise Stopped from None
        raise
    finally:
        watch.ended.set()
        call.cancel()
        watch.thread.join()


class _Watch:
    """Cancels a stream from beside its reader, who may wait for a message as long as the peer likes."""

    def __init__(self, call: Any, stopped: Callable[[], bool], idle_s: float) -> None:
        self._call, self._is_stopped, self._idle_s = call, stopped, idle_s
        self.waiting_since: float | None = None
        """When the reader began to wait; its own work between two messages is not the peer's silence."""
        self.silent = self.stopped = False
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="premoe-fetch-watch", daemon=True)

    def _run(self) -> None:
        while not (self.silent or self.stopped or self.ended.wait(min(POLL_S, self._idle_s))):
            since = self.waiting_since
            self.stopped = self._is_stopped()
            self.silent = not self.stopped and since is not None and time.monotonic() - since > self._idle_s
        if not self.ended.is_set():
            self._call.cancel()
