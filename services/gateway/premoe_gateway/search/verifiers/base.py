"""What a search asks of a verifier."""

from __future__ import annotations

from typing import Protocol


class Verifier(Protocol):
    """Judges the answers of one search."""

    @property
    def timeout_s(self) -> float:
        """Seconds after which an answer counts as not judged."""
        ...

    async def score(self, answer: str) -> float:
        """How good it is, 0 to 1. Raises Unavailable: cannot say; InvalidInput: what was asked of it is wrong."""
        ...
