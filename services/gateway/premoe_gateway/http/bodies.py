"""The body of a request, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from premoe_runtime.formats.errors import InvalidInput

_T = TypeVar("_T")
_QUICK_BYTES = 256 * 1024
"""What is read so fast that nobody who streams notices."""
_DRAINED = 4
"""Times the largest body that is read of a larger one, for a client hears a refusal only once it has sent its body."""


async def json_body(request: Request, *, limit: int) -> bytes:
    """The JSON of a request. Raises InvalidInput: of another type, larger than ``limit`` bytes, cut off."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise InvalidInput("the body must be JSON, sent as content-type: application/json", reason="MEDIA_TYPE")
    data, size = bytearray(), 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > _DRAINED * limit:
                break
            if size <= limit:
                data += part
            else:
                data.clear()
    except ClientDisconnect:
        raise InvalidInput("the body ended early", reason="BODY_CUT") from None
    if size > limit:
        raise InvalidInput(f"the body is larger than {limit} bytes", reason="BODY_TOO_LARGE")
    return bytes(data)


async def parsed(parse: Callable[[bytes], _T], body: bytes) -> _T:
    """What ``parse`` makes of a body; of a long one beside the streams that go on. Raises what ``parse`` raises."""
    return parse(body) if len(body) <= _QUICK_BYTES else await asyncio.to_thread(parse, body)
