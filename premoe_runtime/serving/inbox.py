"""What other threads tell the serving loop, in order; once it has ended, whoever asks is told so."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, SimpleQueue

from premoe_runtime.engines.base import Report, TokenEvent
from premoe_runtime.formats.errors import PremoeError
from premoe_runtime.serving.fetches import Delivered, FetchOver
from premoe_runtime.serving.messages import CheckBytes, Drain, Generate, LoadPattern, Look, Message, PreloadPattern

Heard = Message | Report | Delivered | FetchOver


class Inbox:
    """``post`` and ``close`` may be called from any thread, ``heard`` from the loop's."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Heard] = SimpleQueue()
        self._closed: PremoeError | None = None

    def post(self, message: Heard) -> None:
        """Never blocks. After ``close`` its error is the answer."""
        self._queue.put(message)
        if self._closed is not None:
            self._refuse_all(self._closed)

    def heard(self, timeout: float | None) -> Iterator[Heard]:
        """All messages that are there, one at least; none when ``timeout`` seconds went by without any."""
        try:
            yield self._queue.get(timeout=timeout)
            while True:
                yield self._queue.get_nowait()
        except Empty:
            return

    def close(self, error: PremoeError) -> None:
        """Nobody hears any more. The first error stays."""
        self._closed = self._closed or error
        self._refuse_all(self._closed)

    def _refuse_all(self, error: PremoeError) -> None:
        for message in self.heard(0):
            match message:
                case Generate(request):
                    request.end(TokenEvent(error=error))
                case LoadPattern(_, done) | PreloadPattern(_, done) | Look(done) | CheckBytes(done):
                    done.set_exception(error)
                case Drain(done):
                    done.set_result(None)
                case _:
                    pass
