"""What the gateway asks of workers and of retrieval."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from premoe_gateway.domain import Ask, Event, PatternChoice, Probed, StoredPattern, Tokens, WorkerState
from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.ranking import Ranking


class Worker(Protocol):
    """One worker. Every method raises a PremoeError: Unavailable when it does not answer."""

    @property
    def address(self) -> str: ...

    async def state(self) -> WorkerState:
        """What it serves and how busy it is; Unavailable unless its health is SERVING."""
        ...

    async def probe(self, ask: Ask, timeout_s: float) -> Probed:
        """What the prompt is recognised by."""
        ...

    async def tokenize(self, ask: Ask, timeout_s: float, *, plain: bool) -> Tokens:
        """The tokens of the prompt; of ``plain`` text, without those that the tokenizer adds."""
        ...

    async def detokenize(self, model: str, ids: Sequence[int], *, skip_special: bool, timeout_s: float) -> str:
        """Their text."""
        ...

    def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
        """Started, deltas, Finished. Closing the iterator early cancels the sequence on the worker."""
        ...


class Retrieval(Protocol):
    """The retrieval service."""

    async def retrieve(self, probed: Probed, on_unknown: OnUnknown | None, timeout_s: float) -> PatternChoice:
        """The decision for a prompt; ``on_unknown`` None leaves the policy to the service."""
        ...

    async def ranking(self, pattern_id: str, timeout_s: float) -> Ranking:
        """Every MoE layer's experts in the order of their worth to a pattern."""
        ...

    async def patterns(self, weights_id: str, timeout_s: float) -> tuple[StoredPattern, ...]:
        """Members of the live set."""
        ...
