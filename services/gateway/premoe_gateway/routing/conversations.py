"""Which worker answered a conversation last: its next turn goes there again."""

from __future__ import annotations

from collections import OrderedDict

from premoe_gateway.domain import Prompt, Turn

REMEMBERED = 10_000


class Conversations:
    """Remembers the worker of the newest conversations, by what was said; keeps no text."""

    def __init__(self) -> None:
        self._addresses: OrderedDict[int, str] = OrderedDict()

    def worker_of(self, model: str, prompt: Prompt) -> str:
        """Address of the worker that gave the last answer in this prompt; "" where that is not known."""
        turns = _turns(prompt)
        answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
        return self._addresses.get(hash((model, turns[: answers[-1]])), "") if answers else ""

    def note(self, model: str, prompt: Prompt, address: str) -> None:
        """The worker at ``address`` answers this prompt."""
        turns = _turns(prompt)
        if turns:
            key = hash((model, turns))
            self._addresses[key] = address
            self._addresses.move_to_end(key)
            if len(self._addresses) > REMEMBERED:
                self._addresses.popitem(last=False)


def _turns(prompt: Prompt) -> tuple[Turn, ...]:
    return () if isinstance(prompt, str) else tuple(turn for turn in prompt if isinstance(turn, Turn))
