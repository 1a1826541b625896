"""One request for a blob: who asks, what for, and the answer."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

from aiohttp import hdrs, web
from premoe_dataplane.signing import BLOBS, BlobName, Signer
from premoe_servicekit.errors import one_line

from premoe_expert_store.catalogue import Pack
from premoe_expert_store.http import ranges
from premoe_expert_store.http.sending import Landed, SlowReader, send, together
from premoe_expert_store.ports import Blobs, Purpose
from premoe_runtime.formats.errors import (
    Exhausted,
    Forbidden,
    InvalidInput,
    NotFound,
    PremoeError,
    Unavailable,
)
from premoe_runtime.formats.pieces import PIECE_BYTES

RETRY_AFTER_S = 1
PEER = "peer"
"""In the query, beside what is signed: another replica asks, which must not be asked in turn."""

SENDER, ACCEL, ACCEL_FOLDER = "X-Sendfile-Type", "X-Accel-Redirect", "/premoe-blobs/"
"""A proxy that sets ``SENDER`` to ``ACCEL`` sends whole blobs out of the cache by itself, from below that location."""

log = logging.getLogger(__name__)

Packs = Callable[[BlobName], Awaitable[Pack]]
"""The pack of a name, of the tenant that it says. Raises NotFound, CorruptData, Unavailable."""
Admit = Callable[[web.BaseRequest, BlobName], None]
"""Raises Forbidden for a caller that may not read the blob, whatever address it has."""


class Counting(Protocol):
    """What the handler tells of its work."""

    def answered(self, code: int, num_bytes: int) -> None: ...


@dataclass(frozen=True, slots=True)
class BlobHandler:
    """Answers requests by signed addresses. ``idle_s``: how long a reader may take for a step of 4 MiB at most."""

    shelf: Blobs
    packs: Packs
    signer: Signer
    admit: Admit
    counting: Counting
    idle_s: float

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            response, sent = await self._answer(request)
        except PremoeError as error:
            response, sent = _told(error), 0
        except Exception as error:
            log.error("%s failed: %s", request.path, one_line(error), exc_info=error)
            response, sent = _told(PremoeError("internal error; the server's log has the trace")), 0
        self.counting.answered(response.status, sent)
        return response

    async def _answer(self, request: web.BaseRequest) -> tuple[web.StreamResponse, int]:
        if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            return _text(405, "only GET and HEAD are answered here", {hdrs.ALLOW: "GET, HEAD"}), 0
        if not request.path.startswith(BLOBS):
            return _text(404, f"there is nothing at {request.path[:80]!r}; blobs are below {BLOBS}"), 0
        name = self.signer.check(request.path.removeprefix(BLOBS), request.query)
        self.admit(request, name)
        pack = await self.packs(name)
        if not pack.manifest.has(name.expert) or pack.manifest.digest(name.expert) != name.digest:
            raise NotFound(f"pack {name.model_id} has no such blob as its {name.expert}", reason="EXPERT_NOT_FOUND")
        headers: dict[str, str] = {hdrs.ACCEPT_RANGES: "bytes", hdrs.ETAG: f'"{name.digest}"'}
        try:
            span = ranges.wanted(request.headers.get(hdrs.RANGE), pack.blob_bytes)
        except ranges.Unsatisfiable:
            headers[hdrs.CONTENT_RANGE] = f"bytes */{pack.blob_bytes}"
            return _text(416, f"the blob has {pack.blob_bytes} bytes", headers), 0
        if span.partial:
            headers[hdrs.CONTENT_RANGE] = f"bytes {span.start}-{span.end - 1}/{pack.blob_bytes}"
        response = web.StreamResponse(status=206 if span.partial else 200, headers=headers)
        response.content_length = span.end - span.start
        if request.method == hdrs.METH_HEAD:
            return response, 0
        fd = self.shelf.opened(pack, name.expert)
        if fd is not None:
            try:
                if request.headers.get(SENDER) == ACCEL:
                    return web.Response(headers={ACCEL: f"{ACCEL_FOLDER}{name.digest[:2]}/{name.digest}"}), 0
                return response, await self._send(request, response, name, fd, span)
            finally:
                os.close(fd)
        purpose: Purpose = "peer" if PEER in request.query else "demand"
        async with self.shelf.hold(pack, name.expert, purpose=purpose) as held:
            # What fails before the first byte is still told by a code.
            await held.landed(min(span.end, span.start + PIECE_BYTES))
            return response, await self._send(request, response, name, held.fd, span, held.landed)

    async def _send(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        name: BlobName,
        fd: int,
        span: ranges.Span,
        landed: Landed | None = None,
    ) -> int:
        """The bytes sent: all, or none where the connection was broken."""
        transport = request.transport
        if transport is None:
            return 0
        try:
            with together(transport) if landed is None else nullcontext():
                await response.prepare(request)
                await send(response, transport, fd, span, self.idle_s, landed)
        except (PremoeError, SlowReader, OSError) as error:
            # The head is out: only a connection that breaks says that the rest does not come.
            log.info("%s of pack %s is not sent to its end: %s", name.expert, name.model_id, _why(error))
            transport.abort()
            return 0
        except BaseException:
            transport.abort()
            raise
        return span.end - span.start


def _why(error: Exception) -> str:
    if isinstance(error, SlowReader):
        return "the reader takes nothing"
    return one_line(error) if isinstance(error, PremoeError) else "the reader has left"


def _told(error: PremoeError) -> web.Response:
    headers: dict[str, str] = {}
    if isinstance(error, InvalidInput):
        status = 400
    elif isinstance(error, Forbidden):
        status = 403
    elif isinstance(error, NotFound):
        status = 404
    elif isinstance(error, Unavailable | Exhausted):
        status = 503
        headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_S)
    else:
        status = 500
    return _text(status, f"{error.reason}: {one_line(error)}", headers)


def _text(status: int, line: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=line + "\n", headers=headers)
