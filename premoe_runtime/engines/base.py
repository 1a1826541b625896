"""The engine port: what a worker may ask of an inference engine.

The engine owns batching and the KV cache. It does not decide which patterns may share a batch nor what to
evict: it runs the sequences it is given and applies a swap plan's table changes between two steps. Both the
transformers engine and a vLLM plug-in fit behind this port.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. ``temperature`` 0 is greedy; ``top_p`` 1 turns the nucleus off."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One sequence to run under one pattern row of the mask table.

    ``pattern_row`` indexes the bank's mask table; its experts are resident before ``submit`` is called and stay
    so until the sequence ends. ``active`` experts are used per token (at most the model's top-k).
    """

    request_id: str
    token_ids: tuple[int, ...]
    pattern_row: int
    active: int
    sampling: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True, slots=True)
class SequenceTimings:
    """When a sequence reached what: Unix time in ns, 0 for what never happened.

    Prefill lasts from ``started_ns`` to ``first_token_ns``, decode from there to ``finished_ns``.
    """

    submitted_ns: int
    started_ns: int
    first_token_ns: int
    finished_ns: int


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """New output of one sequence; ``finish`` is set on the last event only, or ``error`` if it failed.

    ``token_ids`` include the end token; ``text`` does not, and stops before a stop string.
    ``retained_mass`` (last event): mean over tokens and layers of the full router's probability mass on
    resident experts, 0 to 1; None when no step ran. ``timings`` (last event): for spans and metrics.
    """

    token_ids: tuple[int, ...]
    text: str
    finish: FinishReason | None = None
    retained_mass: float | None = None
    error: Exception | None = None
    timings: SequenceTimings | None = None

    @property
    def last(self) -> bool:
        return self.finish is not None or self.error is not None


class Sequence(Protocol):
    """A submitted sequence."""

    def cancel(self) -> None:
        """Stop at the next step boundary and free its rows. Safe from any thread, any number of times."""
        ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since start, and what runs now."""

    running: int
    waiting: int
    steps: int
    prompt_tokens: int
    completion_tokens: int


class Engine(Protocol):
    """An engine runs in a thread of its own; every method is safe to call from other threads."""

    @property
    def context(self) -> int:
        """Longest prompt plus answer, in tokens."""
        ...

    def check(self, request: SequenceRequest) -> None:
        """What ``submit`` would refuse, without submitting. Raises InvalidInput."""
        ...

    def submit(self, request: SequenceRequest, on_event: Callable[[TokenEvent], None]) -> Sequence:
        """Queue a sequence; ``on_event`` is called from the engine's thread.

        Raises InvalidInput (empty or over-long prompt), Conflict (id in use), Unavailable (closed).
        """
        ...

    def at_boundary(self, action: Callable[[], None]) -> None:
        """Run ``action`` between two steps, on the engine's thread, and wait for it; re-raises its exception."""
        ...

    def pause(self, request_ids: frozenset[str]) -> None:
        """From the next boundary on, leave these sequences out of steps; their KV is kept."""
        ...

    def resume(self, request_ids: frozenset[str]) -> None:
        """Let paused sequences run again."""
        ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """Cancel everything and stop the thread."""
        ...
