"""The OpenAI HTTP face of the gateway: its routes, who may pass, and how errors look."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from premoe_gateway.access.keyring import Keyring
from premoe_gateway.console.description import paths
from premoe_gateway.console.routes import Console
from premoe_gateway.http import pages
from premoe_gateway.http.answering import answering
from premoe_gateway.http.bodies import json_body
from premoe_gateway.http.calls import HEADER, CallMiddleware, call_of
from premoe_gateway.http.docs import docs
from premoe_gateway.http.door import Door
from premoe_gateway.http.paths import OPEN
from premoe_gateway.http.refusals import refusal, unforeseen
from premoe_gateway.http.tokens import token_routes
from premoe_gateway.http.tracing import TraceMiddleware
from premoe_gateway.openai import answers
from premoe_gateway.openai.description import description
from premoe_gateway.openai.requests import parse_chat, parse_completion
from premoe_gateway.openai.responses import parse_response
from premoe_gateway.search.executor import Searcher
from premoe_gateway.search.verifiers.named import NamedVerifiers
from premoe_gateway.search.verifiers.opening import Verifiers
from premoe_gateway.service import Gateway
from premoe_gateway.settings import MAX_BODY_BYTES
from premoe_runtime.formats.errors import NotFound, PremoeError


def create_app(
    gateway: Gateway,
    *,
    started: int | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    cors_origins: Iterable[str] = (),
    keyring: Keyring | None = None,
    console: Console | None = None,
    searcher: Searcher | None = None,
) -> Starlette:
    """The ASGI application over one gateway.

    ``started`` (Unix seconds) dates the models it lists. Pages of ``cors_origins`` ("*": of any) may call it from
    browsers. With a ``keyring`` whatever is not open (``paths.is_open``) needs one of its keys. Without a ``console``
    it has no page of its own. Without a ``searcher`` it runs no searches.
    """
    created = int(time.time()) if started is None else started
    body = partial(json_body, limit=max_body_bytes)
    searching = searcher or Searcher(gateway, Verifiers(NamedVerifiers()), most=0, timeout_s=1)
    described = description(None if keyring is None else OPEN, {} if console is None else paths())
    routes = [
        Route(
            "/v1/chat/completions",
            answering(gateway, searching, "chat", "chatcmpl-", body, parse_chat),
            methods=["POST"],
        ),
        Route(
            "/v1/completions", answering(gateway, searching, "text", "cmpl-", body, parse_completion), methods=["POST"]
        ),
        Route("/v1/responses", answering(gateway, searching, "chat", "resp_", body, parse_response), methods=["POST"]),
        Route("/v1/models", partial(pages.models, gateway, created), methods=["GET"]),
        Route("/v1/models/{name:path}", partial(pages.model, gateway, created), methods=["GET"]),
        Route("/health", partial(pages.health, gateway, keyring), methods=["GET"]),
        Route("/ready", partial(pages.health, gateway, keyring), methods=["GET"]),
        Route("/healthz", pages.alive, methods=["GET"]),
        Route("/version", pages.version, methods=["GET"]),
        Route("/openapi.json", partial(pages.openapi, described), methods=["GET"]),
        Route("/docs", partial(docs, described), methods=["GET"]),
        *token_routes(gateway, body),
        *(() if console is None else console.routes),
    ]
    app = Starlette(
        routes=routes, exception_handlers={PremoeError: _on_error, HTTPException: _on_http, Exception: _on_bug}
    )
    app.router.redirect_slashes = False  # clients of JSON follow no redirect of a POST
    # The last that is added is the first to see a request.
    if keyring is not None:
        app.add_middleware(Door, keyring=keyring, console=console is not None)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(CallMiddleware)
    app.add_middleware(TraceMiddleware)
    return app


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PremoeError)
    return refusal(error)


async def _on_http(request: Request, error: Exception) -> Response:
    """What the router refuses: paths, and methods with the ones there are in ``Allow``."""
    assert isinstance(error, HTTPException)
    problem = NotFound(f"{request.method} {request.url.path} is not part of this API", reason="NO_SUCH_PATH")
    return JSONResponse(answers.error_body(problem), status_code=error.status_code, headers=error.headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    # Raised again after this answer, so that the server logs it. It is made outside of all that names a request.
    answer = refusal(unforeseen())
    answer.headers[HEADER] = call_of(request.scope).id
    return answer
