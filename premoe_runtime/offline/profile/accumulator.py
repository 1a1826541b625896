"""Streaming accumulation of a profile's sums, on the device that their values come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from premoe_runtime.formats.arrays import Array
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.offline.profile.scores import ROUTER_ONLY, sums_of
from premoe_runtime.offline.profile.seen import Gradients, Outputs, Routed, Weights
from premoe_runtime.offline.profile.state import P_BINS, Needs, ProfileState, Sum

WORD = 64
"""Bits of one entry of a set of tokens."""
NOT_FINITE = "NOT_FINITE"
"""Reason of values that no other try makes better."""
PlaceOf = Callable[[int], str]
"""Which prompt a token belongs to, as ``file:line``."""


class ProfileAccumulator:
    """Adds up batches layer by layer; nothing of a token is kept but its part in the sums that are asked for."""

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        router: RouterSpec,
        *,
        sums: Sequence[Sum] = sums_of(ROUTER_ONLY),
        vocabulary: int = 0,
        device: str = "cpu",
    ) -> None:
        self.router = router
        self._sums, self._layers, self._experts = tuple(sums), num_layers, num_experts
        self._words, self._device = -(-vocabulary // WORD), device
        self._tables: dict[Sum, Tensor] = {}
        self._weighed: set[int] = set()
        for each in self._sums:
            if each.place != "vector":  # as wide as the first vectors that come
                self._table(each, 0)

    def needs(self, *kinds: Needs) -> bool:
        """Whether any sum is taken of one of these."""
        return any(each.needs in kinds for each in self._sums)

    def add(
        self,
        layer: int,
        logits: Tensor,
        ids: Tensor,
        weights: Tensor,
        token_ids: Tensor | None = None,
        place: PlaceOf = "token {}".format,
    ) -> None:
        """Add what one layer's router did, padding already left out.

        logits [T, n] raw router logits of the layer's n experts; ids i64[T, k] and weights [T, k] what the true router
        chose and gave; token_ids i64[T]. Raises CorruptData for logits that are not finite, which names the ``place``
        of the first such token, and InvalidInput when an absent expert was chosen.
        """
        seen = Routed(self.router, logits.double(), ids, weights.double(), token_ids)
        _check(seen.logits, "router logits", layer, place)
        if ids.numel() and int(ids.max()) >= logits.shape[1]:
            raise InvalidInput(
                "a profile needs every expert resident, but the router found one absent", reason="EXPERTS_ABSENT"
            )
        self._take("router", layer, seen)

    def add_outputs(self, layer: int, seen: Outputs, place: PlaceOf = "token {}".format) -> None:
        """Add what its experts gave. Raises CorruptData for outputs that are not finite."""
        _check(seen.norms, "expert outputs", layer, place)
        self._take("outputs", layer, seen)
        if seen.after is not None:
            self._take("stream", layer, seen)

    def add_gradients(
        self, layer: int, seen: Gradients, needs: Needs = "gradient", place: PlaceOf = "token {}".format
    ) -> None:
        """Add how the answers depend on its experts, by one objective. Raises CorruptData: values not finite."""
        _check(seen.change * seen.sensitivity[:, None], "gradients", layer, place)
        self._take(needs, layer, seen)

    def add_weights(self, layer: int, seen: Callable[[], Weights]) -> None:
        """Take what the layer's weights say, unless that has been done."""
        if self.needs("weights") and layer not in self._weighed:
            self._weighed.add(layer)
            self._take("weights", layer, seen())

    def state(self) -> ProfileState:
        """What has been added so far. Raises InvalidInput for a sum that grew beyond what can be added up."""
        found: dict[Sum, Array] = {}
        for each in self._sums:
            if each in self._tables:
                values = self._tables[each].cpu().numpy().copy()
                if not np.isfinite(values).all():
                    raise InvalidInput(
                        f"the sum {each.name} overflows: logits of this size do not go into it; rank by another score",
                        reason="SUM_TOO_LARGE",
                    )
                found[each] = values.reshape(*values.shape[:1], -1, P_BINS) if each.place == "binned" else values
        return ProfileState(found)

    def _take(self, needs: Needs, layer: int, seen: Routed | Outputs | Gradients | Weights) -> None:
        for each in self._sums:
            if each.needs == needs:
                self._add(each, layer, each.take(seen), seen)

    def _add(self, each: Sum, layer: int, values: Tensor, seen: object) -> None:
        table = self._table(each, values.shape[-1])[layer]
        if each.place == "words":
            assert isinstance(seen, Routed)
            self._note_words(table, seen.ids, values)
            return
        values = values if each.whole else _rounded(values.double(), each.bits)
        if each.place == "layer":
            table += values.sum(dim=0)
        elif each.place == "every":
            table[: values.shape[1]] += values.sum(dim=0)
        elif each.place == "fixed":
            table[: len(values)] = values
        elif each.place == "best":
            assert isinstance(seen, Routed)
            table.scatter_add_(0, seen.best.flatten(), values.flatten())
        else:
            assert isinstance(seen, Routed | Outputs | Gradients)
            self._add_chosen(each, table, seen, values)

    def _add_chosen(self, each: Sum, table: Tensor, seen: Routed | Outputs | Gradients, values: Tensor) -> None:
        ids = seen.ids
        if each.place == "vector":
            table.index_add_(0, ids.flatten(), values.flatten(0, 1))
        elif each.place == "pairs":
            both = ids[:, :, None] * self._experts + ids[:, None, :]
            table.view(-1).scatter_add_(0, both.flatten(), torch.ones_like(both).flatten())
        else:
            if each.place == "binned":
                assert isinstance(seen, Routed)
                ids = ids * P_BINS + seen.bins
            table.scatter_add_(0, ids.flatten(), values.flatten())

    def _note_words(self, table: Tensor, ids: Tensor, token_ids: Tensor) -> None:
        """Set the bit of every token in the set of every expert that it chose; table i64[E, words]."""
        pairs = torch.unique(ids * (self._words * WORD) + token_ids[:, None])
        at, bits = pairs // WORD, pairs % WORD
        entries = table.view(-1)
        new = (entries[at] >> bits) & 1 == 0
        entries.scatter_add_(0, at[new], torch.ones_like(at[new]) << bits[new])

    def _table(self, each: Sum, width: int) -> Tensor:
        if each not in self._tables:
            experts = self._experts
            tails = {
                "layer": (),
                "binned": (experts * P_BINS,),
                "vector": (experts, width),
                "pairs": (experts, experts),
                "words": (experts, self._words),
            }
            dtype = torch.int64 if each.whole else torch.float64
            tail = tails.get(each.place, (experts,))
            self._tables[each] = torch.zeros(self._layers, *tail, dtype=dtype, device=self._device)
        return self._tables[each]


def _check(values: Tensor, what: str, layer: int, place: PlaceOf) -> None:
    """Raise CorruptData where [T, …] holds what is not finite."""
    finite = torch.isfinite(values)
    if not finite.all():
        first = int((~finite).flatten(1).any(dim=1).nonzero()[0])
        raise CorruptData(
            f"{place(first)}: {what} of MoE layer {layer} are not finite; nothing is written. Look for damage with "
            "`premoe pack verify`, or profile in --dtype float32",
            reason=NOT_FINITE,
        )


def _rounded(values: Tensor, bits: int) -> Tensor:
    """Round to multiples of 2^-bits, which float64 then adds exactly in any order."""
    return torch.round(values * 2.0**bits) * 2.0**-bits
