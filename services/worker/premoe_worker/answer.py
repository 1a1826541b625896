"""One request's answer as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator

from opentelemetry import trace

from premoe_runtime.engines.base import TokenEvent
from premoe_runtime.numbers.registry import told
from premoe_runtime.serving.admission import Place
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.requests import Request
from premoe_worker.domain import Called, Delta, Event, Finished, PatternChoice, PlaceLogprobs, Started, ToolCall
from premoe_worker.logprobs import of_prompt, place_logprobs
from premoe_worker.model import ServedModel
from premoe_worker.tools.reader import Piece, ToolReader
from premoe_worker.tracing import SwapSpan, record_steps


class Answer:
    """Carries one request's events from the engine's thread to the event loop."""

    def __init__(
        self,
        choice: PatternChoice,
        prompt_tokens: int,
        received_ns: int,
        reader: ToolReader | None = None,
        *,
        single: bool = False,
    ) -> None:
        self._reader, self._single = reader, single
        self._calls = 0
        self._choice = choice
        self._prompt_tokens = prompt_tokens
        self._received_ns = received_ns
        self._completion_tokens, self._numbers = 0, ""
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[SwapReport | TokenEvent] = asyncio.Queue()

    async def run(
        self, model: ServedModel, request: Request, place: Place | None = None
    ) -> AsyncGenerator[Event, None]:
        swap = SwapSpan(self._choice)
        started, self._numbers = False, told(model.manifest)
        # The front copies this context: what is fetched for us becomes part of the swap span.
        with trace.use_span(swap.span, end_on_exit=False):
            handle = model.front.generate(request, self._put, self._put, place)
        try:
            while True:
                item = await self._queue.get()
                if isinstance(item, SwapReport):
                    started = True
                    swap.end(item)
                    yield Started(self._choice, self._prompt_tokens, item)
                    continue
                if item.error is not None:
                    if not started:
                        swap.fail(item.error)
                    raise item.error
                if item.token_ids and not self._completion_tokens and request.sampling.prompt_logprobs is not None:
                    async for part in of_prompt(model.tokens, request.token_ids, item.prompt_logprobs):
                        yield part
                self._completion_tokens += len(item.token_ids)
                said = tuple(place_logprobs(model.tokens, each) for each in item.logprobs)
                for event in self._events(item, said):
                    yield event
                if item.finish is not None:
                    yield self._finished(item)
                    return
                if self._over:
                    handle.cancel()
        finally:
            handle.cancel()

    @property
    def _over(self) -> bool:
        """One call was asked for, and there it is."""
        return self._single and self._calls > 0

    def _events(self, item: TokenEvent, said: tuple[PlaceLogprobs, ...]) -> Iterator[Event]:
        """What an event of the engine brings: text, and calls of tools where there may be some."""
        pieces: list[Piece] = [item.text]
        if self._reader is not None:
            pieces = self._reader.push(item.text, item.token_ids)
            if item.finish is not None:
                pieces += self._reader.close()
        token_ids = item.token_ids
        if token_ids and not (pieces and isinstance(pieces[0], str)):
            pieces.insert(0, "")
        for piece in pieces:
            if isinstance(piece, ToolCall):
                if not self._over:
                    self._calls += 1
                    yield Called(piece)
            elif piece or token_ids:
                yield Delta("" if self._over else piece, token_ids, said)
                token_ids, said = (), ()

    def _put(self, item: SwapReport | TokenEvent) -> None:
        # After a forced stop there may be no loop left to tell.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def _finished(self, event: TokenEvent) -> Finished:
        assert event.finish is not None, "only the last event is turned into Finished"
        stopped = event.finish == "stop" or self._over
        timings = event.timings
        first_ns = timings.first_token_ns if timings else 0
        finished = Finished(
            reason="tool_calls" if self._calls and stopped else event.finish,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            retained_mass=event.retained_mass or 0.0,
            first_token_ms=(first_ns - self._received_ns) / 1e6 if first_ns else 0.0,
            decode_ms=(timings.finished_ns - first_ns) / 1e6 if timings and first_ns else 0.0,
            numbers=self._numbers,
        )
        if timings is not None:
            record_steps(timings, finished)
        return finished
