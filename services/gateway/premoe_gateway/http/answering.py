"""An answer over HTTP: parse the request, ask the service, write one document or server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from premoe_gateway.domain import Called, Delta, Event, Finished, Recognition, ToolCall
from premoe_gateway.echo import echoed
from premoe_gateway.http.bodies import parsed
from premoe_gateway.http.calls import call_of
from premoe_gateway.http.documents import answer_of, text_of
from premoe_gateway.http.refusals import unforeseen
from premoe_gateway.http.searching import Places, searched, told
from premoe_gateway.http.tracing import describe
from premoe_gateway.openai import answers
from premoe_gateway.openai.logprobs import Shape, grow
from premoe_gateway.openai.requests import Order
from premoe_gateway.openai.response_writer import Writer
from premoe_gateway.openai.responses import ResponseOrder, renamed
from premoe_gateway.search.executor import Searcher
from premoe_gateway.sequences import Sequence, merged
from premoe_gateway.service import Gateway
from premoe_runtime.formats.errors import InvalidInput, PremoeError, Unavailable

log = logging.getLogger(__name__)

_CLIENT_GONE = 499

Kind = Literal["chat", "text"]
_T = TypeVar("_T")


def answering(
    gateway: Gateway,
    searcher: Searcher,
    kind: Kind,
    prefix: str,
    body: Callable[[Request], Awaitable[bytes]],
    parse: Callable[[bytes], Order],
) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint that answers what ``parse`` makes of a request's body; ``prefix``: of its answers' ids."""

    async def endpoint(request: Request) -> Response:
        order = _salted(await parsed(parse, await body(request)), call_of(request.scope).key)
        describe(kind, order.ask.model, stream=order.stream)
        head = answers.Head(f"{prefix}{uuid.uuid4().hex}", int(time.time()), order.ask.model, kind)
        if order.search is not None:
            work = _search(gateway, searcher, head, order, call_of(request.scope).take)
        else:
            work = (_begin_stream if order.stream else _answer)(gateway, head, order)
        try:
            return await _unless_gone(request, work)
        except InvalidInput as error:
            named = renamed(order, error)
            if named is None:
                raise
            raise named from error

    return endpoint


def _salted(order: Order, key: str) -> Order:
    """Whether somebody has asked the same before can be told by the clock: who has another key does not find out."""
    return replace(order, ask=replace(order.ask, cache_salt=f"{key}\n{order.ask.cache_salt}"))


async def _answer(gateway: Gateway, head: answers.Head, order: Order) -> Response:
    sequences = await _sequences(gateway, head, order)
    if isinstance(order, ResponseOrder):
        document = await _response(head, order, sequences[0])
    else:
        document = answers.whole(head, await _all([_choice(sequence) for sequence in sequences]))
    return await answer_of(document, _headers(sequences[0].recognition))


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
    text, calls = list[str](), list[ToolCall]()
    shape = sequence.shape
    logprobs = None if shape is None else shape.of(())
    async with aclosing(sequence.events) as events:
        await sequence.begin()
        async for event in events:
            if isinstance(event, Delta):
                text.append(event.text)
                if shape is not None and logprobs is not None:
                    # Piece by piece: those of a long prompt take too long at once.
                    grow(logprobs, shape.of(event.logprobs))
            elif isinstance(event, Called):
                calls.append(event.call)
            elif isinstance(event, Finished):
                said, started = "".join(text), sequence.started
                return answers.Choice(
                    sequence.prompt, said, started, event, sequence.recognition, logprobs, tuple(calls)
                )
    raise _cut()


async def _response(head: answers.Head, order: ResponseOrder, sequence: Sequence) -> answers.Json:
    async with aclosing(sequence.events):
        await sequence.begin()
        writer = Writer(head, order, sequence.started, sequence.recognition)
        async for _ in _written(writer, sequence.events):
            pass
    return writer.response


async def _written(writer: Writer, events: AsyncIterator[Event]) -> AsyncIterator[answers.Json]:
    async for event in events:
        for said in writer.take(event):
            yield said
    if not writer.ended:
        raise _cut()


async def _begin_stream(gateway: Gateway, head: answers.Head, order: Order) -> Response:
    """Wait for the first events, so that a refusal still gets its own HTTP status, then stream the rest."""
    sequences = await _sequences(gateway, head, order)
    try:
        await _all([sequence.begin() for sequence in sequences])
    except BaseException:
        await asyncio.gather(*(sequence.events.aclose() for sequence in sequences), return_exceptions=True)
        raise
    if isinstance(order, ResponseOrder):
        stream = _response_sent(head, order, sequences[0])
    else:
        stream = _server_sent(head, order, sequences)
    headers = {"cache-control": "no-cache", **_headers(sequences[0].recognition)}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _search(gateway: Gateway, searcher: Searcher, head: answers.Head, order: Order, places: Places) -> Response:
    document, choices, recognition = await searched(searcher, head, order, gateway.recognise, places)
    if not order.stream:
        return await answer_of(document, _headers(recognition))
    headers = {"cache-control": "no-cache", **_headers(recognition)}
    return StreamingResponse(_told(head, order, document, choices), media_type="text/event-stream", headers=headers)


async def _told(
    head: answers.Head, order: Order, document: answers.Json, choices: list[answers.Choice]
) -> AsyncIterator[str]:
    for chunk in told(head, order, document, choices):
        yield f"data: {await text_of(chunk)}\n\n"
    yield "data: [DONE]\n\n"


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


async def _response_sent(head: answers.Head, order: ResponseOrder, sequence: Sequence) -> AsyncIterator[str]:
    writer = Writer(head, order, sequence.started, sequence.recognition)
    async with aclosing(sequence.events) as events:
        try:
            for said in writer.opening():
                yield await _named(said)
            async for said in _written(writer, events):
                yield await _named(said)
        except PremoeError as error:
            yield await _named(writer.failed(error))
        except Exception as error:
            yield await _named(writer.failed(_bug(error)))


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


async def _named(value: answers.Json) -> str:
    """An event of a Responses stream; the last ones hold the whole answer."""
    return f"event: {value['type']}\ndata: {await text_of(value)}\n\n"


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


def _bug(error: Exception) -> PremoeError:
    log.error("an answer ended in an unforeseen error", exc_info=error)
    return unforeseen()
