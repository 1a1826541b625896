"""Probing: the routing signature of a prompt, from the first MoE layer, without routed experts and without an engine.

A prompt runs through the embedding, the blocks before the first MoE layer, that block's attention and norm, and its
router. Nothing of that is restricted by a pattern, so a prompt has one signature, whatever is resident.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from premoe_runtime.engines.hf.router import router_logits
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.signature import signature
from premoe_runtime.probing.attention import with_blockwise


class _Reached(Exception):
    """The router's input is known; the rest of the block is not run."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__("the first router was reached")
        self.hidden = hidden


class Prober:
    """Computes signatures on the caller's thread. Safe from several threads; probes queue behind each other.

    ``model``: the pack's, whole beside an engine in the same process, or as far as probes go (``load_probing_model``).
    It reads weights that an engine reads too, and writes nothing that an engine reads: blocks are shallow copies that
    attend block by block (memory grows with the prompt, not with its square), and the last one's MoE part is a stand-in
    that hands back its input.
    """

    def __init__(self, model: PreTrainedModel, manifest: Manifest, *, max_tokens: int | None = None) -> None:
        decoder = model.get_decoder()
        first = manifest.layers[0].block
        self._config = model.config.get_text_config()
        self._max_tokens = max_tokens or int(self._config.max_position_embeddings)
        self._device = decoder.embed_tokens.weight.device
        self._embedding: nn.Module = decoder.embed_tokens
        spec = FAMILIES[manifest.family]
        self._rotary: nn.Module | None = getattr(decoder, spec.rotary) if spec.rotary else None
        self._factor: float = getattr(self._config, spec.embedding_factor) if spec.embedding_factor else 1.0
        self._blocks = [
            *(_probing_copy(block) for block in decoder.layers[:first]),
            _probing_copy(decoder.layers[first], **{spec.sparse: _StandIn()}),
        ]
        router: Any = decoder.layers[first].get_submodule(f"{spec.sparse}.{spec.router_module}")
        self._router, self._router_tensors = manifest.router, spec.router_tensors(router)
        self._experts = manifest.num_experts
        self._lock = threading.Lock()

    @property
    def dimension(self) -> int:
        """Length of a signature."""
        return self._experts

    def signature(self, token_ids: Sequence[int], indices: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        """f32[E], unit length: mean over the tokens at ``indices`` (default: all) of √softmax(router logits).

        Raises InvalidInput for an empty or over-long prompt, an unknown token id, or indices outside the prompt, and
        CorruptData for logits that are not finite.
        """
        chosen = list(range(len(token_ids)) if indices is None else indices)
        self._check(token_ids, chosen)
        # Causal attention: what comes after the last token that counts cannot change the signature.
        needed = token_ids[: max(chosen) + 1]
        with self._lock, torch.inference_mode():
            logits = self._router_logits(torch.tensor([needed], device=self._device))
            probabilities = torch.softmax(logits[chosen].float(), dim=-1).cpu().numpy()
        if not np.isfinite(probabilities).all():
            raise CorruptData(
                "the first router's logits are not finite; the weights may be damaged", reason="LOGITS_INVALID"
            )
        return signature([probabilities], self._experts)

    def _check(self, token_ids: Sequence[int], indices: list[int]) -> None:
        if not token_ids or not indices:
            raise InvalidInput("the prompt is empty; send at least one token", reason="PROMPT_EMPTY")
        if len(token_ids) > self._max_tokens:
            raise InvalidInput(
                f"the prompt has {len(token_ids)} tokens, but the context holds {self._max_tokens}; shorten the prompt",
                reason="CONTEXT_LENGTH_EXCEEDED",
            )
        if min(token_ids) < 0 or max(token_ids) >= int(self._config.vocab_size):
            raise InvalidInput(
                f"the prompt holds token ids outside 0 … {self._config.vocab_size - 1}", reason="TOKEN_ID_INVALID"
            )
        if min(indices) < 0 or max(indices) >= len(token_ids):
            raise InvalidInput(
                f"token indices must lie in 0 … {len(token_ids) - 1} of this prompt", reason="SPAN_INVALID"
            )

    def _router_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[T, n] logits of the first router for i64[1, T] tokens."""
        hidden = self._embedding(input_ids)
        hidden = hidden if self._factor == 1.0 else hidden * self._factor
        length = input_ids.shape[1]
        positions = torch.arange(length, device=self._device)[None]
        rotary = None if self._rotary is None else self._rotary(hidden, position_ids=positions)
        try:
            for block in self._blocks:
                hidden = block(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
        except _Reached as reached:
            weight, bias, _ = self._router_tensors
            return router_logits(self._router, reached.hidden.reshape(length, -1), weight, bias)
        raise RuntimeError("the first MoE block never called its MoE part")


class _StandIn(nn.Module):
    """In place of a block's MoE part: ends the forward with its input."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        raise _Reached(hidden_states)


def _probing_copy(block: nn.Module, **replaced: nn.Module) -> nn.Module:
    """The block with other attention and what is ``replaced``; all other modules are the original's."""
    made = object.__new__(type(block))
    attention = block._modules.get("self_attn")
    if attention is not None and hasattr(
        attention, "config"
    ):  # else the block keeps state: linear in the prompt as it is
        replaced["self_attn"] = with_blockwise(attention)
    made.__dict__ = {**block.__dict__, "_modules": {**block._modules, **replaced}}
    return made
