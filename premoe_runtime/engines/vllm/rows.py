"""Under which mask row every token of a step is, and how many experts it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from premoe_runtime.residency.slot_tables import NARROW, Breadth


class Rule(NamedTuple):
    """``row`` of the mask table; ``active`` experts a token."""

    row: int
    active: int


class TokenRows:
    """``of_token`` and ``active_of_token``: i64[most tokens of a step], at fixed addresses. Rules of requests are
    learnt as they come in.

    Tokens behind the last one (padding, vLLM's own trial runs) are under row 0. ``breadth``: of rows of the mask table.
    """

    def __init__(
        self,
        tokens: int,
        device: torch.device,
        top_k: int = 1,
        breadth: Callable[[frozenset[int]], Breadth] = lambda rows: NARROW,
    ) -> None:
        self._table = torch.zeros(2, tokens, dtype=torch.int64, device=device)
        self.of_token, self.active_of_token = self._table
        self.active_of_token.fill_(top_k)
        self.counts: Mapping[str, int] = {}
        """Tokens of each request in the step at hand, in its order."""
        self.widths: tuple[int, ...] = (top_k,)
        """Numbers of active experts in the step at hand."""
        self.only: int | None = None
        """The row of all tokens of the step at hand, if it is one."""
        self.breadth = NARROW
        """Of the rows of the step at hand."""
        self._tokens = 0
        self._top_k, self._breadth_of = top_k, breadth
        self._rules: dict[str, Rule] = {}

    def learn(self, request_id: str, row: int, active: int | None = None) -> None:
        self._rules[request_id] = Rule(row, active or self._top_k)

    def forget(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self._rules.pop(request_id, None)

    def fill(self, request_ids: Sequence[str], tokens: Sequence[int]) -> None:
        """Of the coming step: ``tokens[i]`` of them belong to ``request_ids[i]``, in this order."""
        self.counts = dict(zip(request_ids, map(int, tokens), strict=True))
        found = [self._rules[request_id] for request_id in request_ids]
        self.widths = tuple(sorted({rule.active for rule in found}))
        # By numpy: torch's repeat_interleave wakes every thread for a handful of numbers.
        spread = np.repeat(np.array(found, dtype=np.int64).reshape(-1, 2), tokens, axis=0).T
        used = spread.shape[1]
        self._table[:, :used].copy_(torch.from_numpy(spread))
        self.of_token[used:].zero_()
        self.active_of_token[used:].fill_(self._top_k)
        rows = frozenset(rule.row for rule in found)
        self.only = next(iter(rows)) if len(rows) == 1 else None
        self.breadth, self._tokens = self._breadth_of(rows), used

    def have_enough(self, tokens: int) -> bool:
        """Whether these are the tokens of the step at hand, and all have top-k experts or more to choose from in every
        layer.
        """
        step = tokens == self._tokens and self.widths == (self._top_k,)
        return step and self.breadth.least >= self._top_k and self.breadth.sliced is not None
