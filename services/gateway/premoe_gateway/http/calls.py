"""What is noted of one HTTP request while it is answered: its id, whose key it shows, what it spends; its log line."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from opentelemetry import trace
from premoe_servicekit.logs import REQUEST_ID
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from premoe_gateway.http.paths import is_quiet
from premoe_gateway.usage import SPENDING, Usage

log = logging.getLogger(__name__)

HEADER = "x-request-id"
_CALL = "premoe.call"
_GOOD_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_LONGEST_PATH = 200


@dataclass(slots=True)
class Call:
    """One request."""

    id: str
    key: str = ""
    """Name of the key that it shows; empty while there is none."""
    usage: Usage = field(default_factory=Usage)
    take: Callable[[int], int] = field(default=lambda answers: answers)
    """Pays for a request that is several answers, and says how many of them may run at a time."""


def call_of(scope: Scope) -> Call:
    """That of a request, made when it is first asked for. A caller's id is kept where it is short and plain."""
    found = scope.get(_CALL)
    if not isinstance(found, Call):
        given = Headers(scope=scope).get(HEADER, "")
        found = scope[_CALL] = Call(given if _GOOD_ID.fullmatch(given) else uuid.uuid4().hex)
    return found


class CallMiddleware:
    """Names the request in its answer, its trace and every line of the log, and writes one line when it has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = call_of(scope)
        # Not put back: the server runs every request in a context of its own, and has something to log of it, too.
        REQUEST_ID.set(call.id)
        SPENDING.set(call.usage)
        trace.get_current_span().set_attribute("premoe.request_id", call.id)
        began = time.perf_counter()
        status = 499

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = call.id
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception:
            status = 500
            raise
        finally:
            if status == 401 or not is_quiet(scope["path"]):
                _write(scope, call, status, time.perf_counter() - began)


def _write(scope: Scope, call: Call, status: int, seconds: float) -> None:
    client = scope.get("client")
    fields = {
        "method": scope["method"],
        "path": scope["path"][:_LONGEST_PATH],
        "status": status,
        "seconds": round(seconds, 4),
        "client": client[0] if client else "",
        "key": call.key,
        "prompt_tokens": call.usage.prompt_tokens,
        "completion_tokens": call.usage.completion_tokens,
    }
    log.info("request", extra={"fields": {name: value for name, value in fields.items() if value not in ("", 0)}})
