"""What a request spends in tokens, counted where answers come from, whatever kind of answer is made of them."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from premoe_gateway.domain import Ask, Delta, Event, Finished, Started


@dataclass(slots=True)
class Usage:
    """Tokens of all sequences of a request; those of a prompt count once."""

    completion_tokens: int = 0
    _prompts: dict[int, int] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        return sum(self._prompts.values())

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def note_prompt(self, ask: Ask, tokens: int) -> None:
        """Choices of one prompt share the prompt itself."""
        self._prompts[id(ask.prompt)] = tokens


SPENDING: ContextVar[Usage | None] = ContextVar("SPENDING", default=None)
"""That of the request that is being answered."""


class Meter:
    """Counts one sequence as its events come, so that an answer that nobody waits for has its price, too."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._usage = SPENDING.get() or Usage()
        self._told = 0

    def note(self, event: Event) -> None:
        """A delta is a token, near enough until the last event says how many there were."""
        if isinstance(event, Delta):
            self._told += 1
            self._usage.completion_tokens += 1
        elif isinstance(event, Started):
            self._usage.note_prompt(self._ask, event.prompt_tokens)
        elif isinstance(event, Finished):
            self._usage.note_prompt(self._ask, event.prompt_tokens)
            self._usage.completion_tokens += event.completion_tokens - self._told
