"""One forward over several sequences, each at its own position and under its own pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from premoe_runtime.engines.hf.attention import Reading
from premoe_runtime.engines.hf.kv import KVPool, KVShape, StepCache
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.engines.hf.rotary import lengths
from premoe_runtime.engines.hf.state import KeptState
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.families.state import stateful_blocks

NO_MASK = torch.empty(0, 0, 0, 0)
"""Keeps transformers from making a mask: it hands four dimensions on as they are."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence: ``tokens[0]`` stands at position ``start`` of KV row ``row``.

    ``every``: the logits after each token are asked for, not after the last one alone. ``length``: tokens that the
    sequence has, those to come in later chunks included; 0: up to this one's end.
    """

    row: int
    start: int
    tokens: tuple[int, ...]
    pattern_row: int
    active: int
    every: bool = False
    length: int = 0


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """``logits``: float[V] after the chunk's last token; ``mass``: sum over its tokens of the retained router mass.

    ``every``: float[N, V] after each of its tokens, where asked for.
    """

    logits: torch.Tensor
    mass: float
    every: torch.Tensor | None = None


def kv_shape(slot_model: SlotModel) -> KVShape:
    """Sizes of the keys and values of a model whose layers are all alike, but for those that keep state."""
    config = slot_model.model.config.get_text_config()
    heads, rank = int(config.num_attention_heads), getattr(config, "kv_lora_rank", None)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    stateful = stateful_blocks(config)
    return KVShape(
        blocks=[block for block in range(config.num_hidden_layers) if block not in stateful],
        heads=1 if rank else getattr(config, "num_key_value_heads", None) or heads,
        key_dim=rank or head_dim,
        value_dim=config.qk_rope_head_dim if rank else head_dim,
        dtype=slot_model.model.dtype,
        device=slot_model.model.device,
        latent=bool(rank),
    )


def kept_state(slot_model: SlotModel) -> KeptState | None:
    """What the model's other blocks keep of a sequence; None where there are none."""
    config = slot_model.model.config.get_text_config()
    blocks, state = stateful_blocks(config), FAMILIES[slot_model.manifest.family].state
    return KeptState(blocks, state(config)) if state and blocks else None


def cache_class(slot_model: SlotModel) -> type[StepCache]:
    """The one that the model's class accepts."""
    if slot_model.manifest.family != "minimax":
        return StepCache
    from premoe_runtime.engines.hf.lightning import LightningStepCache  # brings that family's model along

    return LightningStepCache


class StepRunner:
    """Runs chunks through the model over the KV pool. Not thread-safe: the engine's thread owns it."""

    def __init__(self, slot_model: SlotModel, pool: KVPool) -> None:
        self._slot_model = slot_model
        self._model = slot_model.model
        self._pool = pool
        self._device = slot_model.model.device
        heads = self._model.config.get_text_config().num_attention_heads
        self._cache = cache_class(slot_model)
        self._groups = 1 if pool.shape.latent else heads // pool.shape.heads

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """One forward; writes KV at the chunks' positions only, and state at its end, so a failed one can be repeated.

        With state (``KVPool.state``) chunks are of one length, and all of them begin a sequence or none does.
        """
        width = max(len(chunk.tokens) for chunk in chunks)
        # Padding stands before a chunk and repeats its first token: finite values that nobody reads, and the last
        # token is the last column of all.
        pads = [width - len(chunk.tokens) for chunk in chunks]
        tokens = torch.tensor([chunk.tokens[:1] * pad + chunk.tokens for chunk, pad in zip(chunks, pads, strict=True)])
        offsets = torch.arange(width) - torch.tensor(pads)[:, None]
        positions = torch.tensor([[chunk.start] for chunk in chunks]) + offsets.clamp(min=0)
        real = offsets >= 0
        cache = self._cache(self._pool, [chunk.row for chunk in chunks], positions, real)
        logits = self._forward(chunks, tokens, positions, cache)
        mass = (self._slot_model.retained_mass().cpu().view(len(chunks), width) * real).sum(1)
        cache.commit()
        return [
            ChunkResult(row[-1], float(m), row[-len(chunk.tokens) :] if chunk.every else None)
            for chunk, row, m in zip(chunks, logits, mass, strict=True)
        ]

    def _forward(
        self, chunks: Sequence[Chunk], tokens: torch.Tensor, positions: torch.Tensor, cache: StepCache
    ) -> torch.Tensor:
        """float[B, 1, V] after each chunk's last token, or float[B, T, V] where one of them asks for every token."""
        rows = [chunk.row for chunk in chunks]
        read = range(len(rows)) if self._pool.shape.latent else rows  # latents come without the other rows
        reading = Reading(read, positions, self._groups, self._pool.shape.dtype, self._device)
        columns = range(tokens.shape[1])
        pattern_rows = [chunk.pattern_row for chunk in chunks for _ in columns]
        active = [chunk.active for chunk in chunks for _ in columns]
        whole = [chunk.length or chunk.start + len(chunk.tokens) for chunk in chunks]
        with self._slot_model.steps(pattern_rows, active), lengths(whole), torch.inference_mode():
            logits: torch.Tensor = self._model(
                input_ids=tokens.to(self._device),
                attention_mask=NO_MASK,
                position_ids=positions.to(self._device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=tokens.shape[1] if any(chunk.every for chunk in chunks) else 1,
                reading=reading,
            ).logits
        return logits
