"""Experts dropped a few at a time by any score, taken anew each round, with a short tuning between rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from premoe_runtime.compress.config import width_of
from premoe_runtime.compress.counts import best_of_layers, kept_a_layer
from premoe_runtime.compress.method import Job, Method, setting
from premoe_runtime.compress.methods.select import pooled
from premoe_runtime.compress.objectives import answers_loss
from premoe_runtime.compress.plan import selection
from premoe_runtime.compress.result import Compressed, planned
from premoe_runtime.compress.stages import Step, through, tuned
from premoe_runtime.compress.student import Part
from premoe_runtime.compress.trainer import Training
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.profile.scores import find


@dataclass(frozen=True, slots=True)
class Settings:
    """In the paper one expert a layer goes each round, and the first tuning takes 0.2 M tokens of general text."""

    score: str = setting("ean", "Criterion that ranks experts, taken anew each round (`premoe scores`).")
    rounds: int = setting(4, "Rounds on the way to the budget; 0: as many as experts to drop, one a layer each.")
    one_shot: bool = setting(False, "Drop all at once, then tune on the same tokens: for comparison.")
    budget_tokens: int = setting(8192, "Tokens of the first round's tuning, doubled each round; 0: no tuning.")
    rate: float = setting(1e-3, "Highest learning rate; the larger the model, the lower: 1e-5 for billions of weights.")
    tokens: int = setting(1024, "Tokens of a step.")
    rank: int = setting(0, "Rank of low-rank adapters that are tuned; 0: the weights themselves.")
    every_weight: bool = setting(False, "Tune attention, norms and embeddings, too, not only experts and routers.")


def compress(job: Job) -> Compressed:
    """Drop and tune in turns.

    Memory while it tunes: 16 bytes a tuned weight. Raises InvalidInput: an unknown score, fewer experts than a token
    uses, settings without sense.
    """
    settings: Settings = job.settings
    find(settings.score)
    counts = job.old.manifest.layer_experts
    schedule = dropping(counts, [kept_a_layer(job, count) for count in counts], settings.rounds)
    budgets = [settings.budget_tokens * 2**number for number in range(len(schedule))]
    if settings.one_shot:
        schedule, budgets = schedule[-1:], [sum(budgets)]
    steps: list[Step] = []
    for kept, budget in zip(schedule, budgets, strict=True):
        steps.append(partial(_dropped, kept))
        if budget > 0:
            steps.append(partial(_tuned, budget))
    return through(job, steps)


def dropping(before: Sequence[int], after: Sequence[int], rounds: int) -> list[tuple[int, ...]]:
    """Experts of every layer that each round leaves: equally many go each time; a round in which none goes is none.

    Raises InvalidInput (ROUNDS_INVALID).
    """
    if rounds < 0:
        raise InvalidInput(
            f"--rounds is {rounds}; give 1 or more, or 0 for one expert a layer each", reason="ROUNDS_INVALID"
        )
    most = max(one - other for one, other in zip(before, after, strict=True))
    rounds = min(rounds or most, most)
    found = [
        tuple(one - (one - other) * number // rounds for one, other in zip(before, after, strict=True))
        for number in range(1, rounds + 1)
    ]
    return found or [tuple(after)]


def steps_of(budget: int, tokens: int) -> int:
    """Of so many tokens each, for the whole budget."""
    return -(-budget // max(tokens, 1))


def _dropped(counts: Sequence[int], job: Job) -> Compressed:
    values = pooled(job, job.settings.score)
    kept = best_of_layers(job, values, counts)
    return planned(selection(kept, width_of(job.old.model)), job.old, {})


def _tuned(budget: int, job: Job) -> Compressed:
    settings: Settings = job.settings
    training = Training(
        steps=steps_of(budget, settings.tokens), rate=settings.rate, tokens=settings.tokens, seed=job.seed
    )
    parts: tuple[Part, ...] = ("experts", "routers", "rest") if settings.every_weight else ("experts", "routers")
    return tuned(job, training, parts, lambda: answers_loss, rank=settings.rank, purpose="answers")


METHOD = Method(
    name="mc-suite",
    title="whole experts dropped round by round, with a short tuning between rounds",
    source="MC-Suite, arXiv 2504.05586",
    changes=("count", "router", "weights"),
    needs=("answers", "training"),
    cost="a profile and a tuning a round; tokens double each round",
    loads="hf, vLLM",
    settings=Settings,
    compress=compress,
)
