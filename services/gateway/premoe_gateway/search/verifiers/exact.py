"""Whether an answer is a text, or ends in a number."""

from __future__ import annotations

from decimal import Decimal

from premoe_gateway.search.votes import last_number

_AT_ONCE_S = 10.0


class ExactVerifier:
    """1 for the text itself, spaces around it aside."""

    timeout_s = _AT_ONCE_S

    def __init__(self, expected: str) -> None:
        self._expected = expected.strip()

    async def score(self, answer: str) -> float:
        return float(answer.strip() == self._expected)


class NumberVerifier:
    """1 where the answer's last number is this one; 42 and 42.0 are one number."""

    timeout_s = _AT_ONCE_S

    def __init__(self, expected: str) -> None:
        self._expected = Decimal(expected)

    async def score(self, answer: str) -> float:
        return float(last_number(answer) == self._expected)
