"""What the first steps of training say about experts and adapters: by how much the loss would change without each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from premoe_runtime.compress.counts import best as best_experts
from premoe_runtime.compress.objectives import Objective
from premoe_runtime.compress.student import Lesson, Passed, Student


@dataclass(frozen=True, slots=True)
class Kept:
    """Experts of every layer, by their places in the student, and the names of adapters that stay."""

    experts: tuple[tuple[int, ...], ...]
    adapters: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Kept:
        found = json.loads(path.read_text())
        return cls(tuple(map(tuple, found["experts"])), tuple(found["adapters"]))


class Tally:
    """An objective that sums up, on its way back, first-order importances of experts and adapters.

    Of an expert Σ over tokens of |∂loss / ∂its logit|: under a router that renormalises this is what taking it out of
    the token's mixture changes, w |g · (f - y)|, with its output f, the mixture y and the gradient g there. Of an
    adapter Σ over batches of |⟨b, ∂loss / ∂b⟩|, what its being zero changes. Both stand for the masks that Light-PEFT
    learns in its first steps under an L1 penalty (arXiv 2406.03792).
    """

    def __init__(self, student: Student, objective: Objective) -> None:
        self._objective = objective
        counts = student.old.manifest.layer_experts
        self.experts = [torch.zeros(count, dtype=torch.float64) for count in counts]
        self.adapters = {name.removesuffix(".b"): 0.0 for name in student.trained if name.endswith(".b")}
        for name in self.adapters:
            factor = student.trained[f"{name}.b"]
            factor.register_hook(partial(self._adapter, name, factor))  # type: ignore[no-untyped-call]

    def __call__(self, passed: Passed, lesson: Lesson) -> Tensor:
        for layer, logits in enumerate(passed.routers):
            if logits.requires_grad:
                there = lesson.valid.flatten()
                logits.register_hook(partial(self._expert, layer, there))  # type: ignore[no-untyped-call]
        return self._objective(passed, lesson)

    def _expert(self, layer: int, valid: Tensor, gradient: Tensor) -> None:
        self.experts[layer] += gradient[valid].abs().sum(dim=0).double().cpu()

    def _adapter(self, name: str, factor: Tensor, gradient: Tensor) -> None:
        self.adapters[name] += abs(float((factor.detach() * gradient).sum()))


def best(experts: Sequence[Tensor], counts: Sequence[int], adapters: Mapping[str, float], part: float) -> Kept:
    """The ``counts[l]`` most important experts of every layer, and adapters without the least ``part`` of them. Pure.

    Adapters compare over the whole model; one stays at least.
    """
    chosen = tuple(
        tuple(best_experts(values.numpy(), count).tolist()) for values, count in zip(experts, counts, strict=True)
    )
    order = sorted(adapters, key=lambda name: -adapters[name])
    stay = set(order[: max(1, len(order) - int(part * len(order)))])
    return Kept(chosen, tuple(name for name in adapters if name in stay))
