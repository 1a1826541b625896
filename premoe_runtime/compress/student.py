"""A pack's whole model in memory, in float32, whose weights can be trained: any family, any number of experts a layer.

It is the slot model that every family runs as, with all experts in their slots: the slots' memory is the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.engines.hf.calls import logits_of
from premoe_runtime.families import stock
from premoe_runtime.offline.batches import pad
from premoe_runtime.offline.profile.measure import load_full_model, make_full
from premoe_runtime.offline.profile.samples import Sample, targets

Part = Literal["experts", "routers", "rest"]
"""What is trained: routed experts; routers' rows and biases of their logits; every other weight."""


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """A batch i64[B, T], which of it is no padding, bool[B, T], and where answers are predicted.

    ``rows``, ``places``, ``wanted`` i64[N]: token ``wanted`` follows [row, place].
    """

    token_ids: Tensor
    valid: Tensor
    rows: Tensor
    places: Tensor
    wanted: Tensor

    @classmethod
    def of(cls, samples: Sequence[Sample], device: torch.device | str = "cpu") -> Lesson:
        batch = pad([sample.token_ids for sample in samples], range(len(samples)), device=device)
        return cls(batch.token_ids, batch.valid, *targets(batch.token_ids, samples))


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """What a model made of a lesson, with its graph.

    logits f32[N, V] where answers are predicted; hidden: each block's output there, [N, H]; routers: each MoE layer's
    logits f32[B·T, n], padding included.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...]
    routers: tuple[Tensor, ...]


class LowRank(nn.Module):
    """W [..., out, in] becomes W + (alpha / r) B A: A [..., r, in] drawn from N(0, 1 / in), B [..., out, r] zero."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        *lead, out, into = weight.shape
        drawn = torch.randn(*lead, rank, into, generator=generator) / into**0.5
        self.a = nn.Parameter(drawn.to(weight.device))
        self.b = nn.Parameter(torch.zeros(*lead, out, rank, device=weight.device))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a)


class Student:
    """A model to train, or with no ``parts`` to teach.

    ``parts``: what is trained. ``rank``: of low-rank adapters on these parts' matrices, which then alone are trained
    (0: the weights themselves); ``alpha``: their scale times the rank. ``trained``: what an optimiser moves, by name.

    Memory: 4 bytes a weight; training takes 12 more a trained one (gradient and AdamW's two means), and adapters' sums
    4 a weight that they stand beside. Raises what ``load_full_model`` raises.
    """

    def __init__(
        self,
        old: PackWeights,
        parts: tuple[Part, ...] = (),
        *,
        rank: int = 0,
        alpha: float = 16.0,
        seed: int = 0,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.old, self.rank = old, rank
        self.slots = load_full_model(old.reader, threads=threads, device=device, dtype="float32")
        make_full(self.slots)
        self._places = self._found(parts)
        self._logits: list[Tensor] = []
        if rank:
            self.trained = self._adapted(rank, alpha, torch.Generator().manual_seed(seed))
        else:
            self.trained = {name: getattr(module, last) for name, (module, last) in self._places.items()}
        for parameter in self.trained.values():
            parameter.requires_grad_(True)

    @property
    def device(self) -> torch.device:
        return self.slots.device

    @property
    def names(self) -> Sequence[str]:
        """Of the weights that training changes: ``experts.LAYER.FIELD``, others as in the skeleton."""
        return tuple(self._places)

    def run(self, lesson: Lesson) -> Passed:
        """One forward pass; with gradients where they are on."""
        decoder: Any = self.slots.model.get_decoder()
        with parametrize.cached(), self._listening(decoder.layers) as blocks:
            decoder(input_ids=lesson.token_ids, use_cache=False)
            at = lesson.rows, lesson.places
            hidden = tuple(output[at] for output in blocks)
            logits = logits_of(self.slots.model, hidden[-1]).float()
        return Passed(logits, hidden, tuple(self._logits))

    def tensor(self, name: str) -> Tensor:
        """A weight as it is now, adapters added: experts [E, ...] in the order of their numbers."""
        module, last = self._places[name]
        value: Tensor = getattr(module, last).detach()
        if not name.startswith("experts."):
            return value
        layer = int(name.split(".")[1])
        return value[self.slots.store.lut[layer, : self.old.manifest.layer_experts[layer]]]

    def drop(self, names: Collection[str]) -> None:
        """Take these weights' adapters off again: they are as they were, and nothing trains them."""
        for name in names:
            module, last = self._places[name]
            parametrize.remove_parametrizations(module, last, leave_parametrized=False)
            del self.trained[f"{name}.a"], self.trained[f"{name}.b"]

    @contextmanager
    def _listening(self, layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
        """Every block's output [B, T, H], and routers' logits, of the forward pass inside."""
        blocks, logits = list[Tensor](), list[Tensor]()
        self._logits = logits

        def told(_module: nn.Module, _inputs: Any, output: Any) -> None:
            blocks.append(output[0] if isinstance(output, tuple) else output)

        handles = [layer.register_forward_hook(told) for layer in layers]
        self.slots.record(lambda _layer, found, _ids, _weights: logits.append(found))
        try:
            yield blocks
        finally:
            self.slots.record(None)
            for handle in handles:
                handle.remove()

    def _found(self, parts: tuple[Part, ...]) -> Mapping[str, tuple[nn.Module, str]]:
        """Module and attribute of every weight of these parts; one that is tied counts under its first name."""
        facts, found = self.old.model, dict[str, tuple[nn.Module, str]]()
        for layer, block in enumerate(facts.blocks if "experts" in parts else ()):
            experts: Any = getattr(stock.sparse_part(self.slots.model, facts.spec, block), facts.spec.experts_module)
            for field in self.old.manifest.layout.fields:
                last = field.name if field.name.endswith("_bias") else f"{field.name}_proj"
                last = last.replace("_bias", "_proj_bias")
                weight = getattr(experts, last)
                delattr(experts, last)
                setattr(experts, last, nn.Parameter(weight, requires_grad=False))  # the slots' own memory
                found[f"experts.{layer}.{field.name}"] = experts, last
        seen = set[int]()
        for name, known in facts.skeleton.items():
            if name not in self.old.tensors or ("routers" if name in self.old.routers else "rest") not in parts:
                continue
            above, _, last = known.memory.rpartition(".")
            module = self.slots.model.get_submodule(above)
            weight = module._parameters.get(last)
            if weight is not None and weight.is_floating_point() and id(weight) not in seen:
                seen.add(id(weight))
                found[name] = module, last
        return found

    def _adapted(self, rank: int, alpha: float, generator: torch.Generator) -> dict[str, nn.Parameter]:
        trained = dict[str, nn.Parameter]()
        matrices = {name: place for name, place in self._places.items() if _is_matrix(name, *place)}
        for name, (module, last) in matrices.items():
            adapter = LowRank(getattr(module, last), rank, alpha, generator)
            parametrize.register_parametrization(module, last, adapter)
            trained |= {f"{name}.a": adapter.a, f"{name}.b": adapter.b}
        self._places = matrices
        return trained


def _is_matrix(name: str, module: nn.Module, last: str) -> bool:
    """Whether a weight multiplies: experts' biases [E, I] and embeddings do not."""
    return getattr(module, last).dim() >= 2 and not name.endswith("_bias") and not isinstance(module, nn.Embedding)
