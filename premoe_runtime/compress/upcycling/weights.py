"""What an upcycled checkpoint's new tensors hold: copies or parts of the MLP, noise where asked for, drawn routers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from premoe_runtime.compress.upcycling.plan import PARTS, Made, Part
from premoe_runtime.compress.upcycling.siblings import Upcycling
from premoe_runtime.engines.hf.skeleton import bytes_of, empty_tensor
from premoe_runtime.storage import Store


class DenseWeights:
    """Reads a dense checkpoint, one tensor in memory at a time."""

    def __init__(self, store: Store, what: Upcycling) -> None:
        self._store, self._what = store, what
        self._name, self._tensor = "", torch.empty(0)

    def __call__(self, made: Made) -> Tensor | None:
        """Of routers and experts; all else stays."""
        if made.part is None:
            return None
        if made.part == "router":
            return router(self._what, made.layer, made.stored.shape[1])
        assert made.source is not None
        if self._name != made.source.name:
            self._name, self._tensor = "", torch.empty(0)  # two are never in memory
            self._tensor = empty_tensor(made.source)
            self._store.read_into(made.source.file, made.source.offset, [bytes_of(self._tensor)])
            self._name = made.source.name
        return expert(self._tensor, made.part, self._what, made.layer, made.expert)


Content = Callable[[Made], Tensor | None]
"""What a made tensor holds, in any dtype; None: what its source holds."""


def router(what: Upcycling, layer: int, hidden: int) -> Tensor:
    """f32[experts, H]: rows drawn from a normal, of logits' spread ``what.router``; a copy's parts share one.

    So top-k takes whole copies, all their parts with equal weights.
    """
    copies = what.experts // what.split
    rows: Tensor = torch.randn(copies, hidden, generator=_generator(what, layer, 0, 0)) * what.router / hidden**0.5
    return rows.repeat_interleave(what.split, dim=0)


def expert(dense: Tensor, part: Part, what: Upcycling, layer: int, number: int) -> Tensor:
    """An expert's gate or up [I / split, H], or down [H, I / split], of the dense MLP's.

    A part's down is ``split`` times the dense one, since a copy's weight is shared out among its parts.
    """
    axis = 1 if part == "down" else 0
    mine = dense.chunk(what.split, dim=axis)[number % what.split]
    if part == "down" and what.split > 1:
        mine = mine * what.split
    if what.noise:
        spread = mine.float()
        drawn = torch.randn(mine.shape, generator=_generator(what, layer, 1 + PARTS.index(part), number))
        mine = spread + what.noise * spread.std() * drawn
    return mine.contiguous()


def _generator(what: Upcycling, layer: int, kind: int, number: int) -> torch.Generator:
    """Of its own for every tensor, so that a file written again holds the same."""
    seed = ((what.seed * 1_000 + layer) * 4 + kind) * 1_000_000 + number
    return torch.Generator().manual_seed(seed % (1 << 63))
