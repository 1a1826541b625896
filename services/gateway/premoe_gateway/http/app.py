"""The OpenAI HTTP face of the gateway: parse, ask the service, write JSON or server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from premoe_gateway.access.keyring import Keyring
from premoe_gateway.console.description import paths
from premoe_gateway.console.routes import Console
from premoe_gateway.domain import Called, Delta, Event, Finished, PlaceLogprobs, Recognition, Started, ToolCall
from premoe_gateway.echo import echoed
from premoe_gateway.http.calls import HEADER, CallMiddleware, call_of
from premoe_gateway.http.docs import docs
from premoe_gateway.http.door import Door
from premoe_gateway.http.paths import OPEN
from premoe_gateway.http.refusals import refusal
from premoe_gateway.http.tokens import token_routes
from premoe_gateway.http.tracing import TraceMiddleware, describe
from premoe_gateway.openai import answers
from premoe_gateway.openai.description import description
from premoe_gateway.openai.logprobs import Shape
from premoe_gateway.openai.requests import Order, parse_chat, parse_completion
from premoe_gateway.sequences import Sequence, merged
from premoe_gateway.service import Gateway
from premoe_gateway.settings import MAX_BODY_BYTES
from premoe_runtime.formats.errors import InvalidInput, NotFound, PremoeError, Unavailable

log = logging.getLogger(__name__)

_DRAINED = 4
"""Times the largest body that is read of a larger one, for a client hears a refusal only once it has sent its body."""
_CLIENT_GONE = 499

Kind = Literal["chat", "text"]
_T = TypeVar("_T")


def create_app(
    gateway: Gateway,
    *,
    started: int | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    cors_origins: Iterable[str] = (),
    keyring: Keyring | None = None,
    console: Console | None = None,
) -> Starlette:
    """The ASGI application over one gateway.

    ``started`` (Unix seconds) dates the models it lists. Pages of ``cors_origins`` ("*": of any) may call it from
    browsers. With a ``keyring`` whatever is not open (``paths.is_open``) needs one of its keys. Without a ``console``
    it has no page of its own.
    """
    created = int(time.time()) if started is None else started
    body = partial(_body, limit=max_body_bytes)
    described = description(None if keyring is None else OPEN, {} if console is None else paths())
    routes = [
        Route("/v1/chat/completions", _endpoint(gateway, "chat", body, parse_chat), methods=["POST"]),
        Route("/v1/completions", _endpoint(gateway, "text", body, parse_completion), methods=["POST"]),
        Route("/v1/models", partial(_models, gateway, created), methods=["GET"]),
        Route("/v1/models/{name:path}", partial(_model, gateway, created), methods=["GET"]),
        Route("/health", partial(_health, gateway, keyring), methods=["GET"]),
        Route("/ready", partial(_health, gateway, keyring), methods=["GET"]),
        Route("/healthz", _alive, methods=["GET"]),
        Route("/version", _version, methods=["GET"]),
        Route("/openapi.json", partial(_openapi, described), methods=["GET"]),
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


def _endpoint(
    gateway: Gateway, kind: Kind, body: Callable[[Request], Awaitable[bytes]], parse: Callable[[bytes], Order]
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        order = parse(await body(request))
        describe(kind, order.ask.model, stream=order.stream)
        head = answers.Head(f"{_PREFIX[kind]}-{uuid.uuid4().hex}", int(time.time()), order.ask.model, kind)
        if order.stream:
            return await _unless_gone(request, _begin_stream(gateway, head, order))
        return await _unless_gone(request, _answer(gateway, head, order))

    return endpoint


_PREFIX = {"chat": "chatcmpl", "text": "cmpl"}


async def _answer(gateway: Gateway, head: answers.Head, order: Order) -> Response:
    sequences = await _sequences(gateway, head, order)
    document = answers.whole(head, await _all([_choice(sequence) for sequence in sequences]))
    return JSONResponse(document, headers=_headers(sequences[0].recognition))


async def _sequences(gateway: Gateway, head: answers.Head, order: Order) -> list[Sequence]:
    """Those of all choices, their patterns decided; none has begun."""
    recognitions = await _all([gateway.recognise(ask) for ask in order.asks])
    prompts = await _all([gateway.text_of(ask) for ask in order.asks]) if order.echo else [""] * len(order.asks)
    found = []
    for index, ask in order.choices():
        events = gateway.generate(ask, recognitions[index].choice)
        if order.echo:
            events = echoed(events, prompts[index], order.echo)
        shape = None if ask.sampling.logprobs is None else Shape(head.kind, prompts[index])
        found.append(Sequence(index, recognitions[index], events, shape))
    return found


async def _choice(sequence: Sequence) -> answers.Choice:
    started: Started | None = None
    text, calls = list[str](), list[ToolCall]()
    places: list[PlaceLogprobs] = []
    async with aclosing(sequence.events) as events:
        async for event in events:
            if isinstance(event, Started):
                started = event
            elif isinstance(event, Delta):
                text.append(event.text)
                places += event.logprobs
            elif isinstance(event, Called):
                calls.append(event.call)
            elif started is not None:
                logprobs = None if sequence.shape is None else sequence.shape.of(places)
                return answers.Choice(
                    sequence.prompt, "".join(text), started, event, sequence.recognition, logprobs, tuple(calls)
                )
    raise _cut()


async def _begin_stream(gateway: Gateway, head: answers.Head, order: Order) -> Response:
    """Wait for the first events, so that a refusal still gets its own HTTP status, then stream the rest."""
    sequences = await _sequences(gateway, head, order)
    try:
        await _all([sequence.begin() for sequence in sequences])
    except BaseException:
        await asyncio.gather(*(sequence.events.aclose() for sequence in sequences), return_exceptions=True)
        raise
    stream = _server_sent(head, order, sequences)
    headers = {"cache-control": "no-cache", **_headers(sequences[0].recognition)}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _all(work: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The results of all, at the same time; where one fails, the others are cancelled and it is raised."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _headers(recognition: Recognition) -> dict[str, str]:
    """What ran, for those who see no bodies."""
    return {"x-premoe-decision": recognition.choice.decision}


async def _server_sent(head: answers.Head, order: Order, sequences: list[Sequence]) -> AsyncIterator[str]:
    async with aclosing(merged(sequences)) as events:
        try:
            async for chunk in _chunks(head, order, sequences, events):
                yield _data(chunk)
        except PremoeError as error:
            yield _data(answers.error_body(error))
            return
        except Exception as error:
            yield _data(answers.error_body(_bug(error)))
            return
    yield "data: [DONE]\n\n"


async def _chunks(
    head: answers.Head, order: Order, sequences: list[Sequence], events: AsyncGenerator[tuple[int, Event], None]
) -> AsyncIterator[answers.Json]:
    for index in range(len(sequences)):
        opening = answers.opening(head, index)
        if opening is not None:
            yield opening
    ended: list[answers.Choice] = []
    calls: Counter[int] = Counter()
    async for index, event in events:
        if isinstance(event, Delta) and (event.text or event.logprobs):
            shape = sequences[index].shape
            logprobs = shape.of(event.logprobs) if shape is not None and event.logprobs else None
            yield answers.piece(head, index, event.text, logprobs)
        elif isinstance(event, Called):
            yield answers.called(head, index, calls[index], event.call)
            calls[index] += 1
        elif isinstance(event, Finished):
            sequence = sequences[index]
            ended.append(answers.Choice(sequence.prompt, "", sequence.started, event, sequence.recognition))
            yield answers.closing(head, index, ended[-1])
    if len(ended) < len(sequences):
        raise _cut()
    if order.include_usage:
        yield answers.usage_chunk(head, ended)


def _cut() -> Unavailable:
    return Unavailable("the worker ended the answer without its last event", reason="ANSWER_CUT")


def _data(value: answers.Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _body(request: Request, *, limit: int) -> bytes:
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


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Run ``work`` until the client closes the connection; then cancel it, and with it the worker's sequence."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return Response(status_code=_CLIENT_GONE)
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _models(gateway: Gateway, created: int, request: Request) -> Response:
    by_name = {state.model: state for state in reversed(await gateway.serving())}
    data = [answers.model(by_name[name], created) for name in sorted(by_name)]
    return JSONResponse({"object": "list", "data": data})


async def _model(gateway: Gateway, created: int, request: Request) -> Response:
    name = request.path_params["name"]
    for state in await gateway.serving():
        if state.model == name:
            return JSONResponse(answers.model(state, created))
    raise NotFound(f"model {name!r} is not served here", reason="MODEL_NOT_FOUND")


async def _health(gateway: Gateway, keyring: Keyring | None, request: Request) -> Response:
    """200 while at least one worker serves, else 503."""
    states = gateway.healthy()
    body: answers.Json = {"status": "ok" if states else "no worker", "workers": [state.address for state in states]}
    if keyring is not None:
        body["keys"] = "stale" if keyring.is_stale else "ok"
    return JSONResponse(body, status_code=200 if states else 503)


async def _alive(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _version(request: Request) -> Response:
    return JSONResponse({"version": version("premoe")})


async def _openapi(described: answers.Json, request: Request) -> Response:
    return JSONResponse(described)


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
    answer = refusal(_unforeseen())
    answer.headers[HEADER] = call_of(request.scope).id
    return answer


def _bug(error: Exception) -> PremoeError:
    log.error("an answer ended in an unforeseen error", exc_info=error)
    return _unforeseen()


def _unforeseen() -> PremoeError:
    return PremoeError("internal error; the gateway's log has the trace")
