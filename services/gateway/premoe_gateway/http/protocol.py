"""uvicorn's HTTP/1.1 with bounds on clients: how many there are, how long one may take to ask, and to listen.

uvicorn alone waits for ever for a first request, for the rest of one, and for a client that does not read its answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from premoe_gateway.http.refusals import refusal
from premoe_gateway.settings import CONNECTIONS, RECEIVE_S, SEND_S
from premoe_runtime.formats.errors import InvalidInput, PremoeError, Unavailable

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 * 1024
"""Largest part of a request's line and headers that is kept while the rest is missing."""
LINGER_S = 2.0
"""How long the rest of a refused request is read and dropped, so that its client gets to read why."""


@dataclass(frozen=True, slots=True)
class ClientBounds:
    """What clients get."""

    receive_s: float = RECEIVE_S
    """Seconds from a request's first byte (or the connection) to its last, headers and body."""
    send_s: float = SEND_S
    """Seconds in which a client must read something of an answer that waits for it: some 48 KiB."""
    connections: int = CONNECTIONS


def bounded(bounds: ClientBounds) -> type[asyncio.Protocol]:
    """The protocol under these bounds, as uvicorn takes it."""

    class Protocol(BoundedProtocol):
        client_bounds = bounds

    return Protocol


class BoundedProtocol(H11Protocol):
    """One connection. At most one timer of each kind runs."""

    client_bounds = ClientBounds()
    _receiving: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None
    _left = False
    """Whether nothing more is heard from this client."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        if len(self.connections) > self.client_bounds.connections:
            self._leave(Unavailable("this gateway has as many connections as it may", reason="CONNECTIONS_FULL"))
        else:
            self._receiving = self._later(self.client_bounds.receive_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_receiving()
        self._stop_sending()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._left:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or is too long, is answered in the shape of all other refusals."""
        self._leave(InvalidInput("this is no HTTP request, or its headers are too long", reason="HTTP_INVALID"))

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_end()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending = self._sending or self._later(self.client_bounds.send_s, self._stalled)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_sending()

    def _watch(self) -> None:
        """Time the request that is on its way, if one is."""
        if self._left:
            return
        if self.transport.is_closing():
            self._watch_end()
            return
        state = self.conn.their_state
        if state is h11.SEND_BODY or (state is h11.IDLE and self.conn.trailing_data[0]):
            self._receiving = self._receiving or self._later(self.client_bounds.receive_s, self._too_slow)
            return
        self._stop_receiving()
        if state is h11.IDLE and self.timeout_keep_alive_task is None:
            # uvicorn forgets it where the body of a request ends after its answer.
            self.timeout_keep_alive_task = self._later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _watch_end(self) -> None:
        """Closing waits for the client to read what is left."""
        self._stop_receiving()
        if self.transport.get_write_buffer_size():
            self._sending = self._sending or self._later(self.client_bounds.send_s, self._stalled)

    def _too_slow(self) -> None:
        self._receiving = None
        self._leave(InvalidInput("the request did not come in time", reason="REQUEST_TIMEOUT"))

    def _stalled(self) -> None:
        self._sending = None
        log.info("a client has read nothing of its answer for %g s, so it is left", self.client_bounds.send_s)
        self.transport.abort()

    def _leave(self, error: PremoeError) -> None:
        """Say why, where no answer has begun, and close. What runs for this client hears that it has gone."""
        self._left = True
        self._unset_keepalive_if_required()
        if not self._has_answer:
            self.transport.write(_raw(refusal(error)))
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self._linger()
        else:
            self._close()

    def _linger(self) -> None:
        """Bytes that nobody has read would have the system reset the connection and drop the answer (RFC 9112, 9.6)."""
        self.connections.discard(self)
        self.transport.write_eof()
        self.flow.resume_reading()
        self._stop_receiving()
        self._receiving = self._later(LINGER_S, self._close)

    def _close(self) -> None:
        self.transport.close()
        self._watch_end()

    @property
    def _has_answer(self) -> bool:
        """Whether the request that is on its way has an answer, or the beginning of one."""
        if self.cycle is None or not self.cycle.response_started:
            return False
        return not self.cycle.response_complete or self.conn.their_state is h11.SEND_BODY

    def _stop_receiving(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _later(self, seconds: float, then: Callable[[], None]) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, then)


def _raw(answer: Response) -> bytes:
    """The bytes of an answer that no application gives."""
    status = HTTPStatus(answer.status_code)
    lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode()), b"connection: close"]
    lines += [b"%s: %s" % header for header in answer.raw_headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(answer.body)
