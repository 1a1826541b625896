"""A blob's bytes into a response: by sendfile, without a copy or a thread; through TLS in chunks that are read."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, cast

from aiohttp import web

from premoe_expert_store.http.ranges import Span
from premoe_runtime.formats.pieces import PIECE_BYTES

WHOLE_STEP_BYTES = 4 << 20
"""Sent at a time of a blob that is whole: few steps, and a reader that takes one within the bound is no slow one."""
TLS_CHUNK_BYTES = 256 << 10
"""Memory of one reader under TLS."""


Landed = Callable[[int], Awaitable[None]]
"""Returns once bytes up to an end are there and right."""


class SlowReader(Exception):
    """The reader took too little for too long."""


@dataclass(frozen=True, slots=True)
class _File:
    """What asyncio's sendfile wants of a file: its descriptor."""

    fd: int
    mode: str = "rb"

    def fileno(self) -> int:
        return self.fd


@contextmanager
def together(transport: asyncio.Transport) -> Iterator[None]:
    """What is written inside leaves as few packets: a head by itself would wake its reader for nothing."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    try:
        yield
    finally:
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)


async def send(
    response: web.StreamResponse,
    transport: asyncio.Transport,
    fd: int,
    span: Span,
    idle_s: float,
    landed: Landed | None = None,
) -> None:
    """Send ``span`` of a file into a prepared response; ``landed`` is waited for where its bytes arrive only now.

    Raises what ``landed`` raises, SlowReader when a step is not taken within ``idle_s`` seconds, and OSError when the
    reader has gone.
    """
    encrypted = transport.get_extra_info("sslcontext") is not None
    step = TLS_CHUNK_BYTES if encrypted else WHOLE_STEP_BYTES
    loop = asyncio.get_running_loop()
    at = span.start
    while at < span.end:
        end = min(span.end, at + (step if landed is None else min(step, PIECE_BYTES)))
        if landed is not None:
            await landed(end)
        try:
            async with asyncio.timeout(idle_s):
                if encrypted:
                    await response.write(await asyncio.to_thread(os.pread, fd, end - at, at))
                else:
                    file = cast("BinaryIO", _File(fd))
                    await loop.sendfile(transport, file, at, end - at, fallback=False)
        except TimeoutError:
            raise SlowReader from None
        at = end
