"""Key and value memory of the step loop: a fixed pool of rows, one per running sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache

from premoe_runtime.formats.errors import Exhausted


@dataclass(frozen=True, slots=True)
class KVShape:
    """Sizes of one model's keys and values."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes, keys and values of all layers."""
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class ParkedKV:
    """Keys and values of a sequence that has no row at the moment: [layers, 2, heads, tokens, head_dim] on the host."""

    data: torch.Tensor


class KVPool:
    """``rows`` rows of ``context`` tokens a layer, allocated once; [2, rows, heads, context, head_dim] per layer.

    Column ``j`` of a row is the token at position ``j``. The memory starts as zeros: columns past a sequence's end are
    masked, and a masked NaN would still spoil the product with the values.
    """

    def __init__(self, shape: KVShape, *, rows: int, context: int) -> None:
        self.shape = shape
        self.rows = rows
        self.context = context
        size = (2, rows, shape.heads, context, shape.head_dim)
        try:
            self._layers = [torch.zeros(size, dtype=shape.dtype, device=shape.device) for _ in range(shape.layers)]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise Exhausted(
                f"no room for the keys and values of {rows} sequences of {context} tokens "
                f"({self.num_bytes} bytes) on {shape.device}; lower the context or the number of sequences",
                reason="KV_MEMORY",
            ) from error
        self._free = list(range(rows - 1, -1, -1))

    @property
    def num_bytes(self) -> int:
        return self.rows * self.context * self.shape.token_bytes

    @property
    def free(self) -> int:
        """Rows that no sequence holds."""
        return len(self._free)

    def take(self) -> int:
        """The lowest free row: low rows keep a batch contiguous, and a contiguous batch is read without a copy."""
        row = min(self._free)
        self._free.remove(row)
        return row

    def give_back(self, row: int) -> None:
        self._free.append(row)

    def park(self, row: int, tokens: int) -> ParkedKV:
        """Copy the first ``tokens`` columns of a row to the host."""
        return ParkedKV(torch.stack([layer[:, row, :, :tokens] for layer in self._layers]).cpu())

    def unpark(self, row: int, parked: ParkedKV) -> None:
        tokens = parked.data.shape[-2]
        for layer, data in zip(self._layers, parked.data, strict=True):
            layer[:, row, :, :tokens].copy_(data)

    def layer(self, index: int) -> torch.Tensor:
        return self._layers[index]


class StepCache(Cache):  # type: ignore[misc]  # transformers has no types
    """The pool as the cache of one forward: writes each token at its own position, returns whole rows to attend to.

    ``rows``: pool row of every batch row; ``positions``: i64[B, T]; ``real``: bool[B, T], false on padding, which is
    not written. Keys and values come back as [B, heads, length, head_dim].
    """

    def __init__(self, pool: KVPool, rows: list[int], positions: torch.Tensor, real: torch.Tensor, length: int) -> None:
        super().__init__(layers=[])
        self._pool = pool
        self._rows = rows
        self._length = length
        device = pool.shape.device
        batch, token = real.nonzero(as_tuple=True)
        self._batch, self._token = batch.to(device), token.to(device)
        self._row = torch.tensor(rows)[batch].to(device)
        self._column = positions[batch, token].to(device)
        self._span = contiguous(rows)
        self._index = torch.tensor(rows, device=device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store [B, heads, T, head_dim] of one layer and return what its queries may attend to."""
        layer = self._pool.layer(layer_idx)
        layer[0, self._row, :, self._column] = key_states[self._batch, :, self._token]
        layer[1, self._row, :, self._column] = value_states[self._batch, :, self._token]
        if self._span is not None:
            seen = layer[:, self._span, :, : self._length]
        else:
            seen = layer[:, :, :, : self._length].index_select(1, self._index)
        return seen[0], seen[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns in view; positions and masks are passed in, so nothing is derived from it."""
        return self._length


def contiguous(rows: Iterable[int]) -> slice | None:
    """The slice that these rows are, in this order, if they are one."""
    listed = list(rows)
    if listed == list(range(listed[0], listed[0] + len(listed))):
        return slice(listed[0], listed[0] + len(listed))
    return None
