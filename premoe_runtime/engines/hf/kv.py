"""Key and value memory of the step loop: a fixed pool of rows, one per running sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache

from premoe_runtime.engines.hf.state import KeptState, Parked, StatePool
from premoe_runtime.formats.errors import Exhausted


@dataclass(frozen=True, slots=True)
class KVShape:
    """Sizes of one model's keys and values, which these of its blocks keep.

    ``latent``: what is kept are MLA's latents, one head for all: ``key_dim`` is their rank, ``value_dim`` the shared
    rotary key's. A layer makes keys and values of the rows that it is given.
    """

    blocks: Sequence[int]
    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    latent: bool = False

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes, keys and values of all layers."""
        return len(self.blocks) * self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class ParkedKV:
    """Of a sequence without a row: [layers, heads, tokens, key_dim + value_dim] on the host, and its state."""

    data: torch.Tensor
    state: Parked = ()

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes + sum(tensor.nbytes for tensor in self.state)


class KVPool:
    """``rows`` rows of ``context`` tokens a layer, allocated once; [rows, heads, context, key_dim | value_dim] each.

    Column ``j`` of a row is the token at position ``j``. ``state``: what other blocks keep, a row each. The memory
    starts as zeros: columns past a sequence's end are masked, and a masked NaN would still spoil the product with the
    values.
    """

    def __init__(self, shape: KVShape, *, rows: int, context: int, kept: KeptState | None = None) -> None:
        self.shape = shape
        self.rows = rows
        self.context = context
        self.state: StatePool | None = None
        try:
            keys, values = (
                [
                    torch.zeros(rows, shape.heads, context, size, dtype=shape.dtype, device=shape.device)
                    for _ in shape.blocks
                ]
                for size in (shape.key_dim, shape.value_dim)
            )
            self._layers = dict(zip(shape.blocks, zip(keys, values, strict=True), strict=True))
            if kept is not None:
                self.state = StatePool(kept, rows=rows, dtype=shape.dtype, device=shape.device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise Exhausted(
                f"no room for the keys and values of {rows} sequences of {context} tokens "
                f"({self.num_bytes} bytes) on {shape.device}; lower the context or the number of sequences",
                reason="KV_MEMORY",
            ) from error
        self._free = list(range(rows - 1, -1, -1))

    @property
    def num_bytes(self) -> int:
        return self.rows * self.row_bytes(self.context)

    def row_bytes(self, tokens: int) -> int:
        """Of a sequence of so many tokens."""
        return tokens * self.shape.token_bytes + (self.state.row_bytes if self.state else 0)

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

    def clear(self, row: int) -> None:
        """Forget what a row holds: a failed sequence may have left values that are not finite."""
        for layer in self._layers.values():
            for half in layer:
                half[row].zero_()

    def park(self, row: int, tokens: int) -> ParkedKV:
        """Copy the first ``tokens`` columns of a row to the host."""
        each = [torch.cat([half[row, :, :tokens] for half in layer], dim=-1) for layer in self._layers.values()]
        return ParkedKV(torch.stack(each).cpu(), self.state.park(row) if self.state else ())

    def unpark(self, row: int, parked: ParkedKV) -> None:
        tokens = parked.data.shape[-2]
        if self.state:
            self.state.unpark(row, parked.state)
        for layer, data in zip(self._layers.values(), parked.data, strict=True):
            for half, part in zip(layer, data.split((self.shape.key_dim, self.shape.value_dim), dim=-1), strict=True):
                half[row, :, :tokens].copy_(part)

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one block, [rows, heads, context, key_dim | value_dim]."""
        return self._layers[index]


class StepCache(Cache):  # type: ignore[misc]  # transformers has no types
    """The pool as the cache of one forward: writes each token at its own position, returns the layer to attend to.

    ``rows``: pool row of every batch row; ``positions``: i64[B, T] on the host; ``real``: bool[B, T], false on padding,
    which is not written. Blocks with state work on copies of it until ``commit``; then all rows have begun, or none.
    """

    def __init__(self, pool: KVPool, rows: Sequence[int], positions: torch.Tensor, real: torch.Tensor) -> None:
        state = pool.state
        # Not by super: MiniMax's own class, which its model insists on, takes no layers.
        Cache.__init__(self, layers=state.layers(rows, begun=bool(positions[0, 0] > 0)) if state else [])
        self._pool, self._state_rows = pool, rows
        self._rows = torch.tensor(rows, device=pool.shape.device) if pool.shape.latent else None
        self._length = int(positions.max()) + 1
        first, width = positions[0, 0].item(), positions.shape[1]
        self._place: tuple[slice, slice, slice] | None = None
        self._real: torch.Tensor | None = None
        if list(rows) == list(range(rows[0], rows[0] + len(rows))) and bool(
            (real & (positions == first + torch.arange(width))).all()
        ):
            self._place = (slice(rows[0], rows[0] + len(rows)), slice(None), slice(first, first + width))
            return
        device = pool.shape.device
        batch, token = real.nonzero(as_tuple=True)
        self._row = torch.tensor(rows)[batch].to(device)
        self._column = positions[batch, token].to(device)
        if len(batch) < positions.numel():
            self._real = (batch * width + token).to(device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store [B, heads, T, dim] of one layer; returns its keys and values, [rows, heads, context, dim].

        Of latents only those of this step, [B, 1, columns, dim]: the layer is about to make keys and values of them.
        """
        keys, values = self._pool.layer(layer_idx)
        for held, states in ((keys, key_states), (values, value_states)):
            if self._place is not None:
                held[self._place] = states
                continue
            tokens = states.transpose(1, 2).flatten(0, 1)
            held[self._row, :, self._column] = tokens if self._real is None else tokens[self._real]
        if self._rows is not None:
            return keys[self._rows, :, : self._length], values[self._rows, :, : self._length]
        return keys, values

    def commit(self) -> None:
        """The forward succeeded: its state is that of the rows."""
        if self._pool.state:
            self._pool.state.write(self._state_rows, self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns in view; positions and masks are passed in, so nothing is derived from it."""
        return self._length
