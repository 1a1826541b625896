"""The door: who may come in (API keys) and how often (limits), decided before anything of a request is read."""

from __future__ import annotations

from contextlib import ExitStack

from opentelemetry import trace
from starlette.types import ASGIApp, Receive, Scope, Send

from premoe_gateway.access.keyring import Keyring
from premoe_gateway.access.limits import Limits
from premoe_gateway.http.calls import call_of
from premoe_gateway.http.paths import is_open
from premoe_gateway.http.refusals import refusal
from premoe_runtime.formats.errors import PremoeError

_COUNTED = "POST"
"""Limits are for what computes; looking at what is served is free."""


class Door:
    """Pure ASGI, so that a request holds its place until the last byte of its answer.

    A key is looked at once, when a request comes: an answer that runs when its key is revoked runs to its end.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring, *, console: bool) -> None:
        self._app = app
        self._console = console
        self._keyring = keyring
        self._limits = Limits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"], console=self._console):
            await self._app(scope, receive, send)
            return
        call = call_of(scope)
        place = ExitStack()
        try:
            key = self._keyring.holder(dict(scope["headers"]).get(b"authorization"))
            call.key = key.name
            trace.get_current_span().set_attribute("premoe.key", key.name)
            if scope["method"] == _COUNTED:
                place.enter_context(self._limits.request(key, call.usage))
                call.take = lambda answers: place.enter_context(self._limits.more(key, answers))
        except PremoeError as error:
            await refusal(error)(scope, receive, send)
            return
        with place:
            await self._app(scope, receive, send)
