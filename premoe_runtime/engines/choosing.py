"""The next token of every sequence that a forward brought to one, and how likely it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from premoe_runtime.engines.base import Logprobs
from premoe_runtime.engines.grammar import constrain
from premoe_runtime.engines.logprobs import logprobs
from premoe_runtime.engines.sampling import choose_batch
from premoe_runtime.engines.sequence import RunningSequence

Choice = tuple[int | Exception, Logprobs | None]
"""A token, or why there is none; its likelihood, where it is asked for."""


def choose(sequences: Sequence[RunningSequence], logits: torch.Tensor) -> list[Choice]:
    """One choice a sequence; ``logits``: float[B, V], written to. Never raises."""
    try:
        # Log probabilities are the model's own, and grammars write into its logits.
        told = any(s.matcher is not None and s.request.sampling.logprobs is not None for s in sequences)
        raw = logits.clone() if told else logits
        failed = constrain(logits, [sequence.matcher for sequence in sequences])
        chosen = choose_batch([sequence.sampler for sequence in sequences], logits)
        for index, error in failed.items():
            chosen[index] = error
        likelihoods = _likelihoods(sequences, chosen, raw)
    except Exception as error:
        return [(error, None)] * len(sequences)
    return [(token, likelihoods.get(index)) for index, token in enumerate(chosen)]


def _likelihoods(
    sequences: Sequence[RunningSequence], chosen: Sequence[int | Exception], logits: torch.Tensor
) -> dict[int, Logprobs]:
    """Of the chosen tokens, by the sequence's place, where they are asked for; ``logits``: float[B, V]."""
    wanted = [
        (index, token, count)
        for index, (sequence, token) in enumerate(zip(sequences, chosen, strict=True))
        if (count := sequence.request.sampling.logprobs) is not None and not isinstance(token, Exception)
    ]
    if not wanted:
        return {}
    places, tokens, counts = zip(*wanted, strict=True)
    return dict(zip(places, logprobs(logits[list(places)], tokens, counts), strict=True))
