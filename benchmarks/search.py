"""A search over the number of active experts against as many tokens at one number: tiny-moe, a quarter of its experts.

    python -m benchmarks search [--prompts 64 --answers 8 --temperature 0.7 --json FILE]

The mesh serves the fixture's generalist at ``4/16``, which is wrong often enough for a search to matter. For every
prompt of the exact tasks each number of experts gives ``--answers`` answers, by searches with one number each, and one
greedy one. From these the ways are played by the gateway's own planner (``premoe_gateway.search.plan``): all of them
see the same answers, those of a round come one after another, and each way stops at the same budget of tokens, as many
as ``--answers`` greedy answers of the task have. Verifiers: the exact checker, which knows what users do not (an upper
bound: the share of prompts with a right answer among those sampled); a majority vote; for ``json`` a pattern that
allows the values of the record. Intervals: 95 %, 2,000 resamples of prompts, tasks weighing the same; differences are
paired. FLOPs by the gateway's formula, as shares of one greedy answer's.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import click
import numpy as np
from _report import Report, json_option
from premoe_gateway.search.plan import Plan, Trial, ended, next_round, ranked
from premoe_gateway.search.votes import agreement
from premoe_local import tasks
from premoe_local.demo.prepare import pack_fixture, prepare
from premoe_local.mesh import Mesh, running
from premoe_local.mesh_options import MeshOptions
from premoe_local.tasks import Example, Split

from premoe_runtime.formats.arrays import F64

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-moe"
BUDGET = "4/16"
TASKS = ("add", "rev", "json", "roman")
"""Those that the generalist at this budget gets right more than a tenth of the time."""
LISTS: Mapping[str, tuple[int, ...]] = {"4": (4,), "3": (3,), "4, 3": (4, 3), "4, 2": (4, 2), "4, 3, 2": (4, 3, 2)}
EXPERTS = (4, 3, 2)
SPLITS: tuple[Split, ...] = ("validation", "test")
"""Lists and rounds are chosen on the first; the second is what is told."""
RESAMPLES = 2000
_AT_ONCE = 4

Verify = Callable[[Example, str], float | None]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the pool."""

    text: str
    tokens: int
    flops: float


@dataclass(frozen=True, slots=True)
class Pool:
    """What was sampled for one prompt: ``sampled[experts]`` in order, and the greedy answer."""

    example: Example
    greedy: Answer
    sampled: Mapping[int, tuple[Answer, ...]]


@dataclass(frozen=True, slots=True)
class Played:
    """What one way did with one prompt."""

    right: bool
    tokens: int
    flops: float


async def pools(mesh: Mesh, examples: Sequence[Example], answers: int, temperature: float) -> list[Pool]:
    """Everything that any way can ask for."""
    places = asyncio.Semaphore(_AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def ask(example: Example, experts: int, count: int, **sampling: object) -> tuple[Answer, ...]:
            body = {
                "model": mesh.model_name,
                "messages": [{"role": "user", "content": example.prompt}],
                "pattern": "generalist",
                "max_tokens": 96,
                "n": count,
                "premoe": {"search": {"active_experts": [experts], "rounds": 1}},
                **sampling,
            }
            async with places, session.post(f"{mesh.url}/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                told = await response.json()
            texts = [choice["message"]["content"] for choice in told["choices"]]
            found = told["premoe"]["search"]["answers"]
            return tuple(Answer(texts[each["index"]], each["completion_tokens"], each["flops"]) for each in found)

        async def one(number: int, example: Example) -> Pool:
            greedy, _ = await ask(example, 4, 2, temperature=0)
            # As in a search, no two answers have one seed.
            many = [
                ask(example, experts, answers, temperature=temperature, seed=1000 * number + 100 * experts)
                for experts in EXPERTS
            ]
            return Pool(example, greedy, dict(zip(EXPERTS, await asyncio.gather(*many), strict=True)))

        return await asyncio.gather(*(one(number, example) for number, example in enumerate(examples)))


def play(pool: Pool, plan: Plan, verify: Verify | None) -> Played:
    """A search over answers that are there already, by the planner."""
    waiting = {experts: list(found) for experts, found in pool.sampled.items()}
    seen: list[Answer] = []
    trials: list[Trial] = []
    rounds = 0
    while numbers := next_round(plan, trials, rounds):
        rounds += 1
        for experts in numbers:
            answer = waiting[experts].pop(0)
            seen.append(answer)
            score = None if verify is None else verify(pool.example, answer.text)
            trials.append(Trial(len(trials), experts, answer.tokens, score))
            trials = voted(trials, seen, judged=verify is not None)
            if ended(plan, trials) is not None:
                break
    best = ranked(trials)[0]
    return Played(
        tasks.check(pool.example, seen[best.number].text),
        sum(answer.tokens for answer in seen),
        sum(answer.flops for answer in seen),
    )


def voted(trials: Sequence[Trial], seen: Sequence[Answer], *, judged: bool) -> list[Trial]:
    """With their shares of the vote, which are scores where nobody judges."""
    votes = agreement([answer.text for answer in seen], "text")
    return [
        Trial(trial.number, trial.experts, trial.tokens, trial.score if judged else share, share)
        for trial, share in zip(trials, votes, strict=True)
    ]


def exact(example: Example, text: str) -> float:
    return float(tasks.check(example, text))


def of_the_record(example: Example, text: str) -> float:
    """Whether it is a value of the record in the prompt, whichever."""
    record = re.search(r"\{.*?\}", example.prompt)
    values = json.loads(record[0]).values() if record else ()
    return float(text.strip() in {str(value) for value in values})


class Figures:
    """Per way and task, in the prompts' order."""

    def __init__(self, count: int) -> None:
        self._draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))

    def interval(self, by_task: Sequence[F64]) -> tuple[float, float, float]:
        """Mean over tasks in per cent, and its 95 % interval."""
        resampled = np.mean([values[self._draws].mean(axis=1) for values in by_task], axis=0)
        low, high = np.quantile(resampled, (0.025, 0.975))
        mean = float(np.mean([values.mean() for values in by_task]))
        return 100 * mean, 100 * float(low), 100 * float(high)


def report_way(
    report: Report,
    figures: Figures,
    name: str,
    played: Mapping[str, Sequence[Played]],
    base: Mapping[str, Sequence[Pool]],
) -> dict[str, F64]:
    """Write one way's line; returns who was right, by task."""
    right = {task: np.array([each.right for each in found], np.float64) for task, found in played.items()}
    mean, low, high = figures.interval(list(right.values()))
    tokens = np.mean([sum(p.tokens for p in played[t]) / sum(g.greedy.tokens for g in base[t]) for t in played])
    cost = np.mean([sum(p.flops for p in played[t]) / sum(g.greedy.flops for g in base[t]) for t in played])
    by_task = "  ".join(f"{task} {100 * values.mean():.1f}" for task, values in right.items())
    report.values[name] = f"{mean:.1f} [{low:.1f}, {high:.1f}]  tokens {tokens:.2f}  FLOPs {cost:.2f}  {by_task}"
    return right


def measure(report: Report, split: Split, by_task: Mapping[str, Sequence[Pool]], answers: int) -> None:
    """All ways, at equal budgets."""
    figures = Figures(len(next(iter(by_task.values()))))
    greedy = {
        task: [Played(tasks.check(p.example, p.greedy.text), p.greedy.tokens, p.greedy.flops) for p in found]
        for task, found in by_task.items()
    }
    report_way(report, figures, f"{split}: greedy", greedy, by_task)
    ways: list[tuple[str, Verify | None, Mapping[str, Sequence[Pool]]]] = [
        ("exact", exact, by_task),
        ("vote", None, by_task),
        ("record's values", of_the_record, {"json": by_task["json"]}),
    ]
    for verifier, verify, pools_of in ways:
        fixed: dict[str, F64] = {}
        for name, experts in LISTS.items():
            for rounds in (1,) if len(experts) == 1 else (1, 2, 4):
                played: dict[str, list[Played]] = {}
                for task, found in pools_of.items():
                    spend = round(answers * float(np.mean([pool.greedy.tokens for pool in found])))
                    plan = Plan(answers, experts, rounds, spend, None if verify is None else 1.0)
                    played[task] = [play(pool, plan, verify) for pool in found]
                title = f"{split}: {verifier}, {name}" + (f", {rounds} rounds" if len(experts) > 1 else "")
                right = report_way(report, figures, title, played, pools_of)
                fixed = fixed or right
                if len(experts) > 1:
                    mean, low, high = figures.interval([right[task] - fixed[task] for task in right])
                    report.values[f"{title}: over 4 alone"] = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


@click.command()
@click.option("--prompts", type=click.IntRange(4), default=64, show_default=True, help="Of each task.")
@click.option("--answers", type=click.IntRange(2, 16), default=8, show_default=True)
@click.option("--temperature", type=click.FloatRange(0.0, 2.0, min_open=True), default=0.7, show_default=True)
@json_option
def main(prompts: int, answers: int, temperature: float, json_file: Path | None) -> None:
    """Measure on the fixture model."""
    settings = {"prompts": prompts, "answers": answers, "temperature": temperature}
    report = Report("search", {**settings, "budget": BUDGET, "pattern": "generalist"})
    with ExitStack() as stack:
        url = f"file://{stack.enter_context(tempfile.TemporaryDirectory(prefix='premoe-search-'))}/store"
        pack_fixture(FIXTURE, url)
        prepare(url, lambda text, share: None)
        options = MeshOptions(model=url, budget=BUDGET, threads=1, context_length=512, log_level="warning")
        mesh = stack.enter_context(running(options))
        for split in SPLITS:
            by_task = {
                task: asyncio.run(pools(mesh, tasks.examples(task, split, prompts), answers, temperature))
                for task in TASKS
            }
            measure(report, split, by_task, answers)
    report.finish(json_file)


if __name__ == "__main__":
    main()
