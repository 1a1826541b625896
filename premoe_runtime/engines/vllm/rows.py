"""Which mask row every token of a step is under."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


class TokenRows:
    """``of_token``: i64[most tokens of a step], at a fixed address. Rows of requests are learnt as they come in.

    Tokens behind the last one (padding, vLLM's own trial runs) are under row 0.
    """

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.of_token = torch.zeros(tokens, dtype=torch.int64, device=device)
        self._rows: dict[str, int] = {}

    def learn(self, request_id: str, row: int) -> None:
        self._rows[request_id] = row

    def forget(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self._rows.pop(request_id, None)

    def fill(self, request_ids: Sequence[str], tokens: Sequence[int]) -> None:
        """Of the coming step: ``tokens[i]`` of them belong to ``request_ids[i]``, in this order."""
        rows = torch.tensor([self._rows[request_id] for request_id in request_ids], dtype=torch.int64)
        spread = torch.repeat_interleave(rows, torch.tensor(tokens, dtype=torch.int64))
        self.of_token[: len(spread)].copy_(spread)
        self.of_token[len(spread) :].zero_()
