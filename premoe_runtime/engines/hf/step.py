"""One forward over several sequences, each at its own position and under its own pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from premoe_runtime.engines.hf.attention import attention_mask
from premoe_runtime.engines.hf.kv import KVPool, KVShape, StepCache
from premoe_runtime.engines.hf.model import SlotModel


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence: ``tokens[0]`` stands at position ``start`` of KV row ``row``."""

    row: int
    start: int
    tokens: tuple[int, ...]
    pattern_row: int
    active: int


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """``logits``: float[V] after the chunk's last token; ``mass``: sum over its tokens of the retained router mass."""

    logits: torch.Tensor
    mass: float


def kv_shape(slot_model: SlotModel) -> KVShape:
    """Sizes of the keys and values of a model whose layers are all alike."""
    config = slot_model.model.config.get_text_config()
    heads = int(config.num_attention_heads)
    return KVShape(
        layers=config.num_hidden_layers,
        heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype=slot_model.model.dtype,
        device=slot_model.model.device,
    )


class StepRunner:
    """Runs chunks through the model over the KV pool. Not thread-safe: the engine's thread owns it."""

    def __init__(self, slot_model: SlotModel, pool: KVPool) -> None:
        self._slot_model = slot_model
        self._model = slot_model.model
        self._pool = pool
        self._device = slot_model.model.device
        self._window: int | None = getattr(self._model.config.get_text_config(), "sliding_window", None)

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """One forward; writes KV at the chunks' positions only, so a failed one can be repeated."""
        width = max(len(chunk.tokens) for chunk in chunks)
        counts = torch.tensor([len(chunk.tokens) for chunk in chunks])
        # Padding repeats the chunk's last token at its last position: finite values that nobody reads.
        tokens = torch.tensor([chunk.tokens + chunk.tokens[-1:] * (width - len(chunk.tokens)) for chunk in chunks])
        offsets = torch.minimum(torch.arange(width), counts[:, None] - 1)
        positions = torch.tensor([chunk.start for chunk in chunks])[:, None] + offsets
        real = torch.arange(width) < counts[:, None]
        hidden_logits = self._forward(chunks, tokens, positions, real, counts)
        mass = (self._slot_model.retained_mass().cpu().view(len(chunks), width) * real).sum(1)
        return [ChunkResult(logits, float(m)) for logits, m in zip(hidden_logits, mass, strict=True)]

    def _forward(
        self,
        chunks: Sequence[Chunk],
        tokens: torch.Tensor,
        positions: torch.Tensor,
        real: torch.Tensor,
        counts: torch.Tensor,
    ) -> torch.Tensor:
        width = tokens.shape[1]
        length = int(positions.max()) + 1
        cache = StepCache(self._pool, [chunk.row for chunk in chunks], positions, real, length)
        placed = positions.to(self._device)
        ends = sorted(set((counts - 1).tolist()))
        which = torch.tensor([ends.index(end) for end in (counts - 1).tolist()], device=self._device)
        pattern_rows = torch.tensor([chunk.pattern_row for chunk in chunks]).repeat_interleave(width)
        active = torch.tensor([chunk.active for chunk in chunks]).repeat_interleave(width)
        # The step state is set outside of inference mode: what is allocated there could not be written elsewhere.
        with self._slot_model.steps(pattern_rows, active), torch.inference_mode():
            logits: torch.Tensor = self._model(
                input_ids=tokens.to(self._device),
                attention_mask=attention_mask(placed, length, dtype=self._model.dtype, window=self._window),
                position_ids=placed,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=torch.tensor(ends, device=self._device),
            ).logits
            return logits[torch.arange(len(chunks), device=self._device), which]
