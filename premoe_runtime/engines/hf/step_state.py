"""What a step's routers run under: masks and numbers of experts, worked out once for all layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from premoe_runtime.formats.errors import InvalidInput

Recorder = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""``recorder(layer, logits f32[T, n], ids i64[T, k], weights [T, k])`` of a layer of n experts; id n stands for "no
expert". k: ranks used."""

ALL_TOKENS = slice(None)


@dataclass(frozen=True, slots=True)
class LayerRules:
    """What the router of a layer of n experts runs under in a step of T tokens.

    ``mask``: f32[T or 1, n], 0 or -inf; None when every expert is kept. ``sliced``: of all tokens, or bool[T, 1].
    ``ranks``: how many experts are used, and by which tokens (i64, or all); tokens in no group use none.
    """

    mask: torch.Tensor | None
    sliced: bool | torch.Tensor
    ranks: Sequence[tuple[int, torch.Tensor | slice]]


class StepState:
    """What the coming forward runs under: a mask row and a number of active experts per token.

    ``mask``: f32[L, P, E] and ``sliced``: bool[P] are the slot store's tables, read once when a forward begins.
    ``experts``: how many of its E columns each layer has; the others are not there for its router.
    """

    def __init__(self, mask: torch.Tensor, sliced: torch.Tensor, top_k: int, experts: Sequence[int]) -> None:
        self._mask, self._sliced, self._top_k = mask, sliced, top_k
        self._experts = tuple(experts)
        self.recorder: Recorder | None = None
        self.masses: list[torch.Tensor | None] = [None] * mask.shape[0]
        self.layers: list[LayerRules] = []
        self.set(0, top_k)

    def set(self, rows: Sequence[int] | int, active: Sequence[int] | int) -> None:
        """Fix rows and widths, one a token; single ones hold for every token of whatever forward comes.

        Raises InvalidInput when the lengths differ or ``active`` is outside 1..top-k.
        """
        lengths = {len(value) for value in (rows, active) if not isinstance(value, int)}
        if len(lengths) > 1:
            raise InvalidInput(f"rows and active differ in length: {sorted(lengths)}", reason="STEP_SHAPE")
        self._tokens = lengths.pop() if lengths else None
        self._rows = [rows] if isinstance(rows, int) else rows
        self._active = [active] if isinstance(active, int) else active
        low, high = min(self._active, default=1), max(self._active, default=1)
        if low < 1 or high > self._top_k:
            raise InvalidInput(f"active experts must be 1 to {self._top_k}, not {low} to {high}", reason="STEP_ACTIVE")

    def take(self, tokens: int) -> None:
        """A forward of this many tokens begins. Raises InvalidInput when rows were set for another count."""
        if self._tokens is not None and self._tokens != tokens:
            raise InvalidInput(
                f"rows are set for {self._tokens} tokens, but the forward has {tokens}", reason="STEP_SHAPE"
            )
        self._count = tokens
        self.layers = self._rules()

    def retained_mass(self) -> torch.Tensor:
        """f32[T] of the last forward: kept share of the full router's scores, mean over MoE layers."""
        whole = self._mask.new_ones(self._count)
        if all(mass is None for mass in self.masses):
            return whole
        return torch.stack([whole if mass is None else mass for mass in self.masses]).clamp(max=1.0).mean(dim=0)

    def _rules(self) -> list[LayerRules]:
        distinct = sorted(set(self._rows))
        at = slice(distinct[0], distinct[0] + 1) if len(distinct) == 1 else self._index(distinct)
        table = self._mask[:, at]
        layers, rows, widest = table.shape
        # One wait for the device: how many experts each row keeps in each layer, and whether it is sliced.
        facts = torch.cat([(table == 0).sum(-1).flatten(), self._sliced[at]]).tolist()
        kept = [dict(zip(distinct, facts[layer * rows : (layer + 1) * rows], strict=True)) for layer in range(layers)]
        cut = dict(zip(distinct, facts[layers * rows :], strict=True))
        masks: Sequence[torch.Tensor | None] = [None] * layers
        if any(min(counts.values()) < most for counts, most in zip(kept, self._experts, strict=True)):
            places = self._index([distinct.index(row) for row in self._rows])
            masks = (table if rows == 1 else table[:, places]).unbind(0)
            if min(self._experts) < widest:
                masks = [mask[:, :most] for mask, most in zip(masks, self._experts, strict=True)]
        sliced: bool | torch.Tensor = any(cut.values())
        if sliced and not all(cut.values()):
            sliced = self._index([cut[row] for row in self._rows]).bool()[:, None]
        # Nearly always a row keeps enough everywhere, so that all layers have the same ranks.
        shared = None
        if min(facts[: layers * rows]) >= max(self._active):
            shared = self._ranks(self._active)
        return [
            LayerRules(mask, sliced, self._ranks(self._used(kept[layer])) if shared is None else shared)
            for layer, mask in enumerate(masks)
        ]

    def _used(self, kept: dict[int, int]) -> list[int]:
        """Ranks that each token uses in a layer whose rows keep this many experts."""
        count = max(len(self._rows), len(self._active))
        rows, active = ([*values] * (count // len(values)) for values in (self._rows, self._active))
        return [min(width, kept[row]) for row, width in zip(rows, active, strict=True)]

    def _ranks(self, used: Sequence[int]) -> list[tuple[int, torch.Tensor | slice]]:
        counts = sorted(set(used) - {0})
        if len(counts) == 1 and 0 not in used:
            return [(counts[0], ALL_TOKENS)]
        return [(count, self._index([token for token, ranks in enumerate(used) if ranks == count])) for count in counts]

    def _index(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._mask.device)
