"""Training under a Dirichlet prior on routers: after upcycling, or for a model whose experts are to part.

The prior's concentration is left open by the paper. At 0.1 the labelled fixture's routers stand, whose experts split by
task; those of the natural fixture stand at 1 (docs/compress.md): 0.1 asks for few experts a token, each used equally.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from premoe_runtime.compress.dirichlet import shaping_loss
from premoe_runtime.compress.method import Job, Method, setting
from premoe_runtime.compress.objectives import answers_loss
from premoe_runtime.compress.result import Compressed
from premoe_runtime.compress.stages import tuned
from premoe_runtime.compress.student import Lesson, Part, Passed
from premoe_runtime.compress.trainer import Training
from premoe_runtime.formats.errors import InvalidInput

PARTS: dict[str, tuple[Part, ...]] = {
    "routers": ("routers",),
    "experts": ("experts", "routers"),
    "all": ("experts", "routers", "rest"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How long, what is trained, and to what prior."""

    steps: int = setting(200, "Steps of training.")
    rate: float = setting(1e-3, "Highest learning rate.")
    tokens: int = setting(4096, "Tokens of one step.")
    dirichlet: float = setting(0.1, "Concentration of the prior: below 1 few experts a token; 0 for no prior.")
    shaping: float = setting(1.0, "Weight of the prior's loss, beside the answers' mean loss a token.")
    train: Literal["routers", "experts", "all"] = setting(
        "experts", "Routers alone, experts with them, or all weights."
    )


def compress(job: Job) -> Compressed:
    """The same experts, trained; memory is that of a whole model in training (``Student``)."""
    settings: Settings = job.settings
    if job.old.manifest.router.score not in ("softmax", "topk_softmax"):
        raise InvalidInput(
            f"shape: routers of {job.old.manifest.family} are no softmax, so that no Dirichlet describes them",
            reason="ROUTER_UNSUPPORTED",
        )
    if not (settings.dirichlet >= 0 and settings.shaping >= 0):
        raise InvalidInput("shape: give --dirichlet and --shaping 0 or more", reason="SETTING_INVALID")
    training = Training(steps=settings.steps, rate=settings.rate, tokens=settings.tokens, seed=job.seed)
    shaped = Shaped(settings.dirichlet, settings.shaping)
    return tuned(job, training, PARTS[settings.train], lambda: shaped, purpose=repr(settings))


class Shaped:
    """The answers' loss, and ``weight`` times the prior's, summed over layers, for every predicted token."""

    def __init__(self, concentration: float, weight: float) -> None:
        self._concentration, self._weight = concentration, weight

    def __call__(self, passed: Passed, lesson: Lesson) -> Tensor:
        total = answers_loss(passed, lesson)
        if not (self._concentration and self._weight):
            return total
        there = lesson.valid.flatten()
        for logits in passed.routers:
            total = total + len(lesson.wanted) * self._weight * shaping_loss(logits[there], self._concentration)
        return total


METHOD = Method(
    name="shape",
    title="training that shapes routers to a Dirichlet; it keeps every expert",
    source="Dirichlet-prior shaping, arXiv 2510.01185",
    changes=("weights", "router"),
    needs=("answers", "training"),
    cost="steps of training, the whole model in memory: 4 bytes a weight, 12 more a trained one",
    loads="hf, vLLM",
    settings=Settings,
    compress=compress,
)
