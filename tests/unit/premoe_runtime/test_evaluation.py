import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.oracle import masked_selection
from support.profiles import profile
from support.sources import MemorySource
from support.tiny import tiny_checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.calibration import Example, Message
from premoe_runtime.offline.evaluation.rules import Patterns, random_pattern
from premoe_runtime.offline.evaluation.variants import (
    Outcome,
    Run,
    Variant,
    evaluate,
    generalist_mass,
    plan_runs,
    retained_accuracy,
)
from premoe_runtime.offline.patterns.derive import generalist, specialist
from premoe_runtime.offline.profile.criteria.gradients import IMPACT
from premoe_runtime.offline.profile.measure import load_full_model, measure_profile
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.offline.prompts import encode_prompt, encode_text

BUDGET = Budget(4, 6)


def models(tmp_path: Path) -> tuple[PreTrainedModel, SlotModel]:
    folder = tiny_checkpoint(tmp_path)
    slot_model = load_full_model(MemorySource(folder))
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return stock, slot_model


def greedy(stock: PreTrainedModel, token_ids: tuple[int, ...], kept: torch.Tensor, count: int) -> list[int]:
    """Tokens that the masked stock model writes, one forward each."""
    written = list(token_ids)
    for _ in range(count):
        rows = torch.zeros(len(written), dtype=torch.long)
        with masked_selection(kept[None], rows), torch.no_grad():
            written.append(int(stock(input_ids=torch.tensor([written])).logits[0, -1].argmax()))
    return written[len(token_ids) :]


@pytest.mark.parametrize("restricted", [False, True])
def test_exact_match_and_perplexity_are_those_of_greedy_decoding(tmp_path: Path, restricted: bool) -> None:
    stock, slot_model = models(tmp_path)
    tokenizer = slot_model.tokenizer
    # A random model never ends an answer: leave the end token out.
    tokenizer.eos_token = None
    pattern = specialist(measure(slot_model))
    kept = torch.from_numpy(pattern.kept(BUDGET)) if restricted else torch.ones(2, 16, dtype=torch.bool)
    examples, right, nll, tokens, far = [], 0, 0.0, 0, 0.0
    for number in range(30):
        messages = (Message("user", f"question {number}"),)
        prompt = encode_prompt(tokenizer, messages).token_ids
        written = tokenizer.decode(greedy(stock, prompt, kept, 2))
        printable = (text for text in (written, written[:1]) if text.isascii() and text.isprintable() and text.strip())
        text = next(printable, "no")
        answer = encode_text(tokenizer, text)
        right += greedy(stock, prompt, kept, len(answer)) == list(answer)
        with masked_selection(kept[None], torch.zeros(len(prompt + answer), dtype=torch.long)), torch.no_grad():
            logits = stock(input_ids=torch.tensor([prompt + answer])).logits[0]
        logp = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
        nll, tokens = nll - float(logp.sum()), tokens + len(answer)
        with torch.no_grad():
            whole = stock(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        under = logits[len(prompt) - 1 : -1].log_softmax(-1)
        far += float((whole.exp() * (whole - under)).sum(-1).mean())
        examples.append(Example(messages, text, number))
    run = Run("x", "specialist", BUDGET, pattern) if restricted else Run("x", "full", None, None)
    outcome = next(evaluate(slot_model, {"x": examples}, [run], max_tokens=300))
    assert 0 < right < len(examples)
    assert (outcome.correct, outcome.examples) == (right, 30)
    assert outcome.perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-3)
    assert outcome.kl == pytest.approx(far / 30, rel=1e-3, abs=1e-6)
    assert (outcome.kl > 0.01) is restricted
    assert outcome.mass == pytest.approx(1) if not restricted else 0 < outcome.mass < 1


def measure(slot_model: SlotModel) -> Profile:
    return measure_profile(slot_model, [Example((Message("user", "abc"),), "x", 1)] * 2, task="x")


def test_fewer_active_experts_change_the_answers(tmp_path: Path) -> None:
    _, slot_model = models(tmp_path)
    pattern = specialist(measure(slot_model))
    examples = [Example((Message("user", f"q{number}"),), "answer", 1) for number in range(8)]
    runs = [Run("x", "specialist", Budget(active, 16), pattern) for active in (4, 1)]
    four, one = evaluate(slot_model, {"x": examples}, runs)
    assert four.mass == pytest.approx(1) == pytest.approx(one.mass)
    assert four.perplexity != pytest.approx(one.perplexity, rel=1e-3)


def test_runs_cover_every_task_variant_and_budget() -> None:
    specialists = {task: specialist(profile(task)) for task in ("add", "rev", "json")}
    pool = generalist([profile(task) for task in specialists])
    patterns = Patterns(specialists, pool, random_pattern(pool))
    runs = plan_runs(["rev", "add"], [Budget(2, 4), Budget(1, 2)], patterns)
    assert [run.variant for run in runs[:6]] == ["full", "full", "specialist", "generalist", "random", "wrong"]
    assert len(runs) == 2 * (1 + 2 * 4)
    wrong = {run.task: run.pattern.task for run in runs if run.variant == "wrong" and run.pattern}
    assert wrong == {"rev": "add", "add": "json"}
    with pytest.raises(NotFound, match="no pattern for task 'poem'; the patterns given are for add, json, rev"):
        plan_runs(["poem"], [], patterns)
    with pytest.raises(NotFound, match="no pattern for task 'poem'; the patterns given are for no task"):
        plan_runs(["poem"], [], Patterns({}, pool, None))


def test_what_a_shared_set_serves_lies_within_one_worker_s_slots() -> None:
    profiles = [weighed("add", 5.0), weighed("rev", 0.2)]
    rule = replace(Patterns.by_rule(profiles, "impact", "shared"), spare=0)
    budget = Budget(2, 4)
    runs = {(run.task, run.variant): run for run in plan_runs(["add", "rev"], [budget], rule)}
    slots = runs["add", "served"].slots
    assert slots is not None
    assert runs["rev", "served"].slots == slots
    assert sum(slots) == 2 * 4
    for task in ("add", "rev"):
        served, own = runs[task, "served"].kept(), runs[task, "specialist"].kept()
        assert served is not None
        assert own is not None
        assert served.sum() == own.sum() == 2 * 4
        assert served.sum(axis=1).tolist() == list(slots) != own.sum(axis=1).tolist()
    uniform = Patterns.by_rule(profiles, "impact", "uniform")
    assert "served" not in {run.variant for run in plan_runs(["add"], [budget], uniform)}
    assert uniform.generalist is not None
    assert uniform.generalist.kept(budget).sum(axis=1).tolist() == [4, 4]


def weighed(task: str, first: float) -> Profile:
    """A profile whose first layer matters ``first`` times as much as its second."""
    made = profile(task)
    impact = np.outer([first, 1.0], 2.0 ** -np.arange(8))
    return replace(made, state=replace(made.state, sums={**made.state.sums, IMPACT: impact}))


def test_one_task_alone_has_no_wrong_specialist_nor_a_set_without_one_a_generalist() -> None:
    only = specialist(profile("add"))
    runs = plan_runs(["add"], [Budget(2, 4)], Patterns({"add": only}, None, random_pattern(only)))
    assert [run.variant for run in runs] == ["full", "specialist", "random"]


def test_random_patterns_follow_their_seed() -> None:
    like = specialist(profile("add"))
    assert random_pattern(like, 1).ranking.tolist() == random_pattern(like, 1).ranking.tolist()
    assert random_pattern(like, 1).ranking.tolist() != random_pattern(like, 2).ranking.tolist()


def test_retained_accuracy_pools_tasks() -> None:
    pool = generalist([profile("add")])

    def outcome(task: str, budget: Budget | None, correct: int, mass: float = 1.0) -> Outcome:
        variant: Variant = "full" if budget is None else "generalist"
        return Outcome(Run(task, variant, budget, pool if budget else None), 10, correct, 1.0, mass)

    outcomes = [
        outcome("add", None, 10),
        outcome("rev", None, 6),
        outcome("add", BUDGET, 7, 0.6),
        outcome("rev", BUDGET, 1, 0.8),
    ]
    assert retained_accuracy(outcomes, "generalist", BUDGET) == 8 / 16
    assert retained_accuracy(outcomes[2:], "generalist", BUDGET) is None
    assert generalist_mass(outcomes, BUDGET) == pytest.approx(0.7)
    assert generalist_mass([], BUDGET) == 0


def test_what_the_model_cannot_run_is_refused(tmp_path: Path) -> None:
    _, slot_model = models(tmp_path)
    pattern = specialist(measure(slot_model))
    data = {"x": [Example((Message("user", "q"),), "a", 1)]}

    def run(budget: Budget, with_: Pattern) -> None:
        list(evaluate(slot_model, data, [Run("x", "specialist", budget, with_)]))

    with pytest.raises(InvalidInput, match="top-k is 4"):
        run(Budget(5, 6), pattern)
    with pytest.raises(InvalidInput, match="the model has 16"):
        run(Budget(4, 17), pattern)
    with pytest.raises(InvalidInput, match="belongs to weights"):
        run(Budget(2, 4), specialist(profile("x")))
