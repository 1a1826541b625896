"""What a number format has to say. Values; torch only where tensors are handed in.

A format is one file with one ``NumberFormat``. Packs keep its tensors byte for byte: an expert's are fields of its
blob, all others lie in the skeleton under their own names. Whoever computes asks ``dequantise`` for the weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Self

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import NumberSpec
from premoe_runtime.numbers.scales import Data

if TYPE_CHECKING:
    import torch

ZEROS = "a bias of zeros, which some tools give every layer"
"""Why no weight needs a tensor that must be zero to be left out."""
UNNAMED = ("lm_head",)
"""What formats leave alone when a config does not say what they left alone."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One of the tensors that stand for a weight: its name on disk, and what it must be. Any of ``dtypes`` will do."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NumberFormat(ABC):
    """A number format as one checkpoint has it.

    ``spec``: all that dequantising needs, as manifests carry it. ``kept``: modules that the config leaves alone, as
    names, their ends, or patterns with ``*``; a checkpoint's tensors, not this, decide what is read how.
    """

    spec: NumberSpec
    kept: tuple[str, ...] = UNNAMED

    method: ClassVar[str]
    """``quant_method`` of config.json."""
    experts_only: ClassVar[bool] = False
    """Only experts are stored so, as the stock class fuses them; otherwise every linear layer, experts one by one."""

    @classmethod
    @abstractmethod
    def read(cls, config: Mapping[str, object], where: str) -> Self:
        """The format of a ``quantization_config``. Raises InvalidInput (NUMBERS_UNSUPPORTED) with the reason."""

    @property
    @abstractmethod
    def title(self) -> str:
        """For people: ``FP8 (e4m3, blocks of 128 x 128)``."""

    @abstractmethod
    def names(self, weight: str) -> tuple[str, ...]:
        """Names of the tensors stored for ``weight``, of which it may be one itself."""

    @abstractmethod
    def tensors(self, weight: str, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        """Those of ``names``, in their order, for a weight of [rows, columns]. Raises InvalidInput: it has no such."""

    @abstractmethod
    def shape(self, stored: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """[rows, columns] of the weight that tensors of these shapes stand for."""

    @abstractmethod
    def dequantise(self, stored: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """dtype[rows, columns] of the tensors ``names`` lists: bit for bit what transformers makes of them."""

    def fault(self, name: str, dtype: str, data: Data) -> str:
        """What a stored tensor of this name cannot hold, and these values do; empty when there is no such."""
        return ""

    def needless(self, name: str) -> str:
        """Why no weight needs a tensor of this name that the model has not; empty when there is no such reason."""
        return ""

    def converts(self, module: str) -> bool:
        """Whether, by the config, the weights of a module are stored in this format."""
        return not any(
            module.endswith(one) or fnmatchcase(module, one) or fnmatchcase(module, f"{one}.*") for one in self.kept
        )


def names_of(config: Mapping[str, object], *keys: str, where: str) -> tuple[str, ...]:
    """The modules that a config leaves alone, under the first of the ``keys`` that it has."""
    found = next((config[key] for key in keys if config.get(key) is not None), None)
    if found is None:
        return UNNAMED
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise unsupported(where, f"{keys[0]} is no list of names")
    return tuple(found)


def unsupported(where: str, why: str) -> InvalidInput:
    return InvalidInput(f"{where}: quantization_config: {why}", reason="NUMBERS_UNSUPPORTED")
