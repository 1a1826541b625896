"""The worker's logic: which pattern a request runs under, and its answer as a stream of events. No gRPC types."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from premoe_servicekit.faults import own_fault
from premoe_servicekit.telemetry import tracer

from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.errors import InvalidInput, NotFound, PremoeError
from premoe_runtime.formats.signature import Signatures
from premoe_runtime.serving.reports import Residency, SwapReport
from premoe_runtime.serving.requests import KeptPattern, Request
from premoe_worker.answer import Answer
from premoe_worker.checks import Checks
from premoe_worker.denials import DENY_INVALID
from premoe_worker.domain import Ask, Event, Finished, PatternChoice, Tokens
from premoe_worker.lane import Lane
from premoe_worker.limits import Limits
from premoe_worker.model import Encoded, ServedModel
from premoe_worker.patterns import Patterns
from premoe_worker.ports import Retrieval
from premoe_worker.tools.reader import ToolReader
from premoe_worker.tracing import describe_choice, describe_request

log = logging.getLogger(__name__)

_ENCODERS = 2
"""Threads that turn prompts into tokens; one long prompt does not hold up the others."""


class Worker:
    """One served model. Use from one event loop."""

    def __init__(
        self,
        model: ServedModel,
        retrieval: Retrieval | None,
        limits: Limits,
        *,
        name: str,
        max_tokens: int | None = None,
        recommended: SamplingParams = SamplingParams(temperature=1.0),
        queue_limit: int = 256,
        deny: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.limits = limits
        self.name = name
        self.recommended = recommended
        """What the checkpoint's authors advise; whoever asks decides whether to follow."""
        self._patterns = Patterns(retrieval, limits, model.manifest, deny)
        self._max_tokens = max_tokens
        self._numbers = itertools.count(1)
        self._encoding = Lane("encoded", threads=_ENCODERS, waiting=queue_limit)
        self._checks = Checks(queue_limit)
        # Probes of one model queue behind each other in any case.
        self._probing = Lane("probed", threads=1, waiting=queue_limit)

    async def generate(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """Started, deltas, Finished. Closing the iterator early stops the sequence at the next step.

        Raises InvalidInput (prompt, sampling, active experts), NotFound (model, pattern), Conflict (UNKNOWN_TASK,
        full without slots), Exhausted (queues), Unavailable (retrieval, store, draining), CorruptData.
        """
        received_ns = time.time_ns()
        self._check_model(ask.model)
        self.model.front.admission.check()
        # Whose schema waits to be checked takes no place from those that need none.
        grammar = await self._checks.grammar(ask, self.model.tool_use)
        place = self.model.front.admission.enter()
        try:
            request, answer = await self._prepare(ask, grammar, received_ns)
        except BaseException:
            place.leave()
            raise
        async with aclosing(answer.run(self.model, request, place)) as events:
            async for event in events:
                yield event

    async def _prepare(self, ask: Ask, grammar: str, received_ns: int) -> tuple[Request, Answer]:
        """Everything that comes before a request can be queued with its pattern."""
        encoded = await self._encoding.run(self.model.encode, ask)
        ask = self._settled(ask, encoded)
        describe_request(ask, self.name, len(encoded.token_ids))
        choice = ask.choice or await self._recognise(encoded, ask.on_unknown or self.limits.on_unknown)
        denied = await self._patterns.denied(ask.deny)
        try:
            choice, pattern, budget = await self._patterns.resolve(choice, denied)
        except (NotFound, InvalidInput) as error:
            # A pattern that the live set named and that is not there, or does not fit, is no mistake of the caller.
            if ask.choice is None and error.reason != DENY_INVALID:
                raise own_fault(error) from error
            raise
        describe_choice(choice)
        active = self._active(ask, pattern, budget)
        number = f"r{next(self._numbers)}"
        request = Request(
            number,
            pattern,
            active,
            encoded.token_ids,
            ask.sampling,
            salt=ask.cache_salt.encode(),
            grammar=grammar,
            priority=ask.priority,
        )
        use = self.model.tool_use
        reader = ToolReader(use.form, use.special) if ask.tools and use.form is not None else None
        return request, Answer(choice, len(encoded.token_ids), received_ns, reader, single=ask.tool_choice.single)

    async def probe(self, ask: Ask) -> tuple[Signatures, int, float]:
        """Signatures of a prompt, tokens of its last user turn, milliseconds. Raises InvalidInput, Exhausted (queue).

        A probe is refused while a request would be: it is asked for on behalf of one.
        """
        self.model.front.admission.check()
        started = time.perf_counter()
        encoded = await self._encoding.run(self.model.encode, ask)
        self._settled(ask, encoded)
        signatures = await self._signatures(encoded)
        return signatures, encoded.span.stop - encoded.span.start, (time.perf_counter() - started) * 1e3

    async def tokenize(self, ask: Ask, *, plain: bool, model: str) -> Tokens:
        """The tokens that ``generate`` would run on. Raises InvalidInput, NotFound (model), Exhausted (queue)."""
        self._check_model(model)
        encoded = await self._encoding.run(self.model.encode, ask, plain=plain)
        names = self.model.tokens.names(list(encoded.token_ids))
        return Tokens(encoded.token_ids, tuple(names), self.model.engine.limits.context)

    async def detokenize(self, token_ids: Sequence[int], *, skip_special: bool, model: str) -> str:
        """Their text. Raises what ``tokenize`` raises."""
        self._check_model(model)
        if len(token_ids) > (longest := self.model.engine.limits.context):
            raise InvalidInput(
                f"this model's maximum context length is {longest} tokens, but {len(token_ids)} are sent; send them in "
                "parts",
                reason="CONTEXT_LENGTH_EXCEEDED",
            )
        return await self._encoding.run(self.model.decode, token_ids, skip_special=skip_special)

    async def load_pattern(self, pattern_id: str) -> SwapReport:
        """Make a pattern resident and pin it in host memory. Raises what ``generate`` raises for a pattern."""
        pattern, _ = await self._patterns.kept(pattern_id)
        return await asyncio.to_thread(self.model.front.load_pattern, pattern)

    @property
    def weights_id(self) -> str:
        return self.model.manifest.weights_id

    @property
    def slots(self) -> tuple[int, ...]:
        """Expert slots of every MoE layer."""
        return self.limits.slots

    @property
    def split_problem(self) -> str:
        """Why the slots do not spread as the live pattern set says; empty when they do, or need not."""
        return self._patterns.split_problem

    @property
    def denies(self) -> tuple[str, ...]:
        """Tasks whose own experts no request gets."""
        return self._patterns.denies

    async def pattern(self, pattern_id: str) -> KeptPattern:
        """A pattern cut to its budget. Raises NotFound, InvalidInput (made for other weights), Unavailable."""
        return (await self._patterns.kept(pattern_id))[0]

    async def preload(self, pattern: KeptPattern) -> SwapReport | None:
        """See ``Front.preload``."""
        return await asyncio.to_thread(self.model.front.preload, pattern)

    def unload_pattern(self, pattern_id: str) -> None:
        self.model.front.unload_pattern(pattern_id)

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests; how many still ran after ``timeout_s`` seconds."""
        return await asyncio.to_thread(self.model.front.drain, timeout_s)

    async def check_integrity(self) -> None:
        """Check every resident byte between two steps. Takes a while. Raises CorruptData."""
        await asyncio.to_thread(self.model.check_integrity)

    def close(self) -> None:
        """Encode and probe no more."""
        self._encoding.close()
        self._checks.close()
        self._probing.close()

    def residency(self) -> Residency:
        return self.model.front.residency()

    async def verify(self) -> None:
        """Prove that this worker works: swap a pattern in, run one real forward, check every resident byte.

        Raises what a request would, and CorruptData; Unavailable where it cannot tell what it denies.
        """
        await self._patterns.denied(())
        pattern = await self._verification_pattern()
        request = Request("verification", pattern, min(self.limits.budget.active, int(pattern.counts.min())), (0, 0))
        request = replace(request, sampling=replace(request.sampling, max_tokens=1))
        answer = Answer(PatternChoice("full", pattern.id), 2, time.time_ns())
        async for event in answer.run(self.model, request):
            if isinstance(event, Finished) and not 0.0 < event.retained_mass <= 1.001:
                raise PremoeError(
                    f"the first forward kept {event.retained_mass} of the router's mass; the weights cannot be right",
                    reason="VERIFICATION_FAILED",
                )
        await self.check_integrity()

    async def _verification_pattern(self) -> KeptPattern:
        """The live set's generalist or first pattern; any experts where there is no set yet."""
        try:
            pattern = await self._patterns.first()
            if pattern is not None:
                return pattern
        except PremoeError as error:
            log.info("no pattern for the verified forward, any experts will do: %s", error)
        return self.model.any_pattern(min(self.limits.budget.kept, *self.limits.slots))

    def _check_model(self, model: str) -> None:
        if model not in ("", self.name, self.model.manifest.model_id):
            raise NotFound(f"this worker serves {self.name}, not {model}", reason="MODEL_NOT_FOUND")

    def _settled(self, ask: Ask, encoded: Encoded) -> Ask:
        """``ask`` with our defaults where it names nothing.

        Raises InvalidInput for what can never run, before anything is probed, fetched or swapped.
        """
        limits, tokens = self.model.engine.limits, len(encoded.token_ids)
        room, wanted = limits.context - tokens, ask.sampling.max_tokens
        settled = replace(ask.sampling, max_tokens=wanted or max(1, min(room, self._max_tokens or room)))
        active = self.limits.budget.active if ask.active_experts is None else ask.active_experts
        limits.check(encoded.token_ids, active, settled)
        if wanted > room:
            raise InvalidInput(
                f"this model's maximum context length is {limits.context} tokens, but {tokens} of the prompt and "
                f"{wanted} of the answer (max_tokens) are asked for; ask for at most {room}",
                reason="CONTEXT_LENGTH_EXCEEDED",
            )
        return replace(ask, sampling=settled)

    async def _recognise(self, encoded: Encoded, on_unknown: OnUnknown) -> PatternChoice:
        retrieval = self._patterns.retrieval()
        signatures = await self._signatures(encoded)
        with tracer().start_as_current_span("retrieve") as span:
            choice = await retrieval.retrieve(self.model.manifest.weights_id, signatures, on_unknown)
            describe_choice(choice, span=span)
        if choice.decision != "specialist":
            log.info("prompt of no stored task: %s (%s)", choice.decision, choice.reason)
        return choice

    async def _signatures(self, encoded: Encoded) -> Signatures:
        with tracer().start_as_current_span("probe") as span:
            span.set_attribute("premoe.probe.tokens", encoded.span.stop - encoded.span.start)
            return await self._probing.run(self.model.signatures, encoded)

    def _active(self, ask: Ask, pattern: KeptPattern, budget: Budget) -> int:
        wanted = ask.active_experts
        active = budget.active if wanted is None else wanted
        least = int(pattern.counts.min())
        if active > least:
            denying = f" without the experts of {', '.join(ask.deny)}" if ask.deny else ""
            error = InvalidInput(
                f"{active} active experts asked for, but pattern {pattern.id} keeps {least} in some layer{denying}",
                reason=DENY_INVALID if ask.deny and wanted is None else "ACTIVE_EXPERTS_INVALID",
            )
            # Of what the worker alone denies and activates, the caller has named nothing.
            raise error if ask.deny or wanted is not None else own_fault(error)
        return active
