"""Under which mask row every token of a step is, how many experts it uses, and what its rows retain of the router."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch


class Rule(NamedTuple):
    """``row`` of the mask table; ``active`` experts a token."""

    row: int
    active: int


class TokenRows:
    """``of_token`` and ``active_of_token``: i64[most tokens of a step]; ``mass``: f32, which routers add to, layer by
    layer. All at fixed addresses. Rules of requests are learnt as they come in.

    Tokens behind the last one (padding, vLLM's own trial runs) are under row 0.
    """

    def __init__(self, tokens: int, device: torch.device, top_k: int = 1) -> None:
        self._table = torch.zeros(2, tokens, dtype=torch.int64, device=device)
        self.of_token, self.active_of_token = self._table
        self.active_of_token.fill_(top_k)
        self.mass = torch.zeros(tokens, device=device)
        self.counts: Mapping[str, int] = {}
        """Tokens of each request in the step at hand, in its order."""
        self.widths: tuple[int, ...] = (top_k,)
        """Numbers of active experts in the step at hand."""
        self._top_k = top_k
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
        self.mass.zero_()

    def masses(self) -> list[float]:
        """Of every request in ``counts``, once the step has run: sum over tokens and layers. Waits for the device."""
        counts = np.array([*self.counts.values()], dtype=np.int64)
        mass = self.mass[: counts.sum()].cpu().double().numpy()
        found: list[float] = np.add.reduceat(mass, counts.cumsum() - counts).tolist()
        return found
