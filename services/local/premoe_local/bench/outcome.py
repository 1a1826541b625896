"""What became of one call."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

OK = "ok"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call that ended. Times are seconds after the run's beginning.

    Latencies count from ``due``, not from ``sent``: an open loop's users come when they come, however late this program
    is with sending.
    """

    task: str
    due: float
    sent: float
    ended: float
    moments: tuple[float, ...] = ()
    """When text came."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    code: str = OK
    """``ok``, an HTTP status, or a word for what went wrong."""
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.code == OK

    @property
    def ttft_s(self) -> float:
        """To the first text; to the end of an answer that has none."""
        return (self.moments[0] if self.moments else self.ended) - self.due

    @property
    def e2e_s(self) -> float:
        return self.ended - self.due

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Between one text and the next."""
        return tuple(later - earlier for earlier, later in pairwise(self.moments))

    @property
    def tpot_s(self) -> float | None:
        """Per token after the first; None without such."""
        if self.completion_tokens < 2 or not self.moments:
            return None
        return (self.moments[-1] - self.moments[0]) / (self.completion_tokens - 1)
