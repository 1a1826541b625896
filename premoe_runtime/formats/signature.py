"""Signatures: what a prompt's routing looks like at the signature layers, as one unit vector.

Torch-free, so that the prober, the profiler and the retrieval service share one definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from premoe_runtime.formats.arrays import F32, F64
from premoe_runtime.formats.errors import InvalidInput

T = TypeVar("T")
U = TypeVar("U")


class SignatureSpec(BaseModel):
    """How signatures are made; fixed per profile and per pattern set, so that only like is compared with like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transform: Literal["sqrt-l2"] = "sqrt-l2"
    """Mean over tokens of the square root of the router's softmax, layers concatenated, unit length."""
    layers: tuple[Annotated[int, Field(ge=0, le=10_000)], ...] = Field(default=(0,), min_length=1)
    """MoE layers, from 0. The first needs no routed expert."""
    dimension: int = Field(ge=1, le=1 << 30)
    """``len(layers) * experts``, of the layer that has the most."""
    span: Literal["last-user-turn"] = "last-user-turn"
    """Tokens averaged over: template, system and tool tokens are left out."""


EARLIER_TURNS = 8
"""User turns before the last one whose signatures say what a conversation was about: the latest ones."""


@dataclass(frozen=True, eq=False)  # slots: a subscripted generic could not be called
class Turns(Generic[T]):
    """What is known of the user turns of a conversation, such as their signatures.

    whole    of the last one, after all that comes before it
    alone    of the last one as if it opened the conversation; None where it does, and for prompts that are no chat
    earlier  of those before it, each alone, oldest first, at most ``EARLIER_TURNS``
    """

    whole: T
    alone: T | None = None
    earlier: tuple[T, ...] = ()

    @property
    def all(self) -> tuple[T, ...]:
        return (self.whole, *(() if self.alone is None else (self.alone,)), *self.earlier)

    def like(self, values: Sequence[U]) -> Turns[U]:
        """Something else of the same turns, in the order of ``all``."""
        whole, *others = values
        return Turns(whole, None if self.alone is None else others.pop(0), tuple(others))


Signatures: TypeAlias = Turns[F32]
"""f32[D] each."""


def signature(probabilities: Sequence[F32], experts: int) -> F32:
    """Mean of √p per signature layer, concatenated, unit length.

    ``probabilities`` holds f32[T, n] per layer of n experts: the full router's softmax at the tokens that matter.
    Returns f32[len(layers) * experts]; what a layer has fewer is 0. Raises InvalidInput when there are no tokens.
    """
    if not probabilities:
        raise _empty()
    return unit(np.concatenate([mean_root(layer, experts) for layer in probabilities]).astype(np.float32))


def mean_root(probabilities: F32, experts: int) -> F64:
    """One layer's part of a ``signature`` before it is scaled: f64[experts], the mean of √p over f32[T, n]."""
    if not len(probabilities):
        raise _empty()
    mean = np.sqrt(np.maximum(probabilities.astype(np.float64), 0)).mean(axis=0)
    return np.pad(mean, (0, experts - len(mean)))


def unit(vectors: F32) -> F32:
    """Scale the last axis to length 1; zero vectors stay zero."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def _empty() -> InvalidInput:
    return InvalidInput("a signature needs at least one token of the user's turn", reason="PROMPT_EMPTY")
