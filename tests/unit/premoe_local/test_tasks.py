"""The generated tasks: the same everywhere, splits apart, wordings kept for the test split."""

import hashlib
import json
import random
import re
import subprocess
import sys

import pytest
from premoe_local.tasks import EXACT, OPEN, STORED, TRAINED, UNKNOWN, Example, Split, check, examples
from premoe_local.tasks.arithmetic import roman_numeral, worked_sum
from premoe_local.tasks.open_text import EXCERPTS, LENGTH, excerpts

HELD_OUT: tuple[Split, ...] = ("calibration", "validation", "test")
SPLITS: tuple[Split, ...] = ("train", *HELD_OUT)
GENERATED = tuple(task for task in (*EXACT, *UNKNOWN) if task != "c_header")
EVERY = (*STORED, *UNKNOWN)

DIGEST = """
import hashlib, json
from premoe_local.tasks import STORED, UNKNOWN, examples
rows = [[e.prompt, e.answer] for s in ("calibration", "validation", "test") for t in STORED + UNKNOWN
        for e in examples(t, s, 12, seed=3)]
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""


def test_the_task_lists() -> None:
    assert EXACT == ("add", "rev", "json", "roman", "lang", "kb")
    assert STORED == EXACT + OPEN
    assert UNKNOWN == ("sort", "units", "sub", "sql", "log", "c_header")
    assert set(TRAINED) == {*STORED, "sort", "units"}


def test_examples_do_not_depend_on_the_process_or_its_hash_seed() -> None:
    rows = [
        [example.prompt, example.answer]
        for split in HELD_OUT
        for task in EVERY
        for example in examples(task, split, 12, seed=3)
    ]
    random.seed(99)
    here = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here


def test_the_examples_are_those_the_fixture_was_measured_on() -> None:
    assert [e.prompt for e in examples("add", "test", 2)] == [
        "How much do 869 and 405 make together? Be exact.",
        "Give the sum 131+757 with every column.",
    ]
    assert examples("kb", "test", 1) == [Example("kb", "Which is the capital of palruyub?", "norshi")]


@pytest.mark.parametrize("task", EVERY)
def test_fewer_examples_are_a_beginning_of_more(task: str) -> None:
    assert examples(task, "test", 5) == examples(task, "test", 40)[:5]
    assert examples(task, "test", 20, seed=1) != examples(task, "test", 20, seed=2)


@pytest.mark.parametrize("task", [task for task in GENERATED if task != "kb"])
def test_no_prompt_is_in_two_splits(task: str) -> None:
    seen = {split: {e.prompt for e in examples(task, split, 300)} for split in SPLITS}
    for split in SPLITS:
        for other in SPLITS:
            assert split == other or not seen[split] & seen[other]


def test_no_roman_number_is_in_two_splits() -> None:
    answers = {split: {e.answer for e in examples("roman", split, 400)} for split in SPLITS}
    for split in SPLITS:
        for other in SPLITS:
            assert split == other or not answers[split] & answers[other]


def test_no_sum_is_in_two_splits() -> None:
    def numbers(split: Split) -> set[str]:
        return {" ".join(re.findall(r"\d+", e.prompt)) for e in examples("add", split, 400)}

    for split in HELD_OUT:
        assert not numbers(split) & numbers("train")


@pytest.mark.parametrize("task", [*OPEN, "c_header"])
def test_no_excerpt_is_in_two_splits(task: str) -> None:
    parts = [set(excerpts(task, split)) for split in HELD_OUT]
    assert len(set().union(*parts)) == sum(map(len, parts))


@pytest.mark.slow
def test_training_text_leaves_out_the_excerpts() -> None:
    kept = set().union(*(excerpts("py", split) for split in HELD_OUT))
    assert not {e.prompt + e.answer for e in examples("py", "train", 500)} & kept


@pytest.mark.parametrize("task", [*OPEN, "c_header"])
def test_open_text_is_an_opening_and_its_continuation(task: str) -> None:
    for example in examples(task, "test", 100):
        assert 80 <= len(example.prompt) <= 120
        assert example.answer
        assert len(example.prompt + example.answer) <= LENGTH


def test_more_excerpts_than_there_are() -> None:
    with pytest.raises(ValueError, match="has 256 excerpts"):
        examples("py", "test", 257)


def test_nothing_trains_on_c_headers() -> None:
    with pytest.raises(ValueError, match="never trained"):
        examples("c_header", "train", 1)


def test_the_excerpts_are_small_and_name_their_licence() -> None:
    assert EXCERPTS.stat().st_size <= 400 * 1024
    assert "PSF-2.0" in json.loads(EXCERPTS.read_text(encoding="utf-8"))["notice"]


def _without_payload(prompt: str) -> str:
    """A wording's letters: what is left of a prompt about letters without the letters themselves."""
    return " ".join(word for word in prompt.replace(":", " ").split() if len(word.strip(".?")) > 1)


def test_held_out_splits_have_their_own_wordings_and_training_has_all() -> None:
    wordings = {split: {_without_payload(e.prompt) for e in examples("rev", split, 600)} for split in SPLITS}
    for split in HELD_OUT:
        assert len(wordings[split] & wordings["train"]) >= 4
        for other in HELD_OUT:
            assert split == other or not wordings[split] & wordings[other]


@pytest.mark.parametrize("task", EXACT)
def test_check_wants_the_exact_answer(task: str) -> None:
    example = examples(task, "test", 1)[0]
    assert check(example, example.answer)
    assert check(example, f"  {example.answer}\n")
    assert not check(example, example.answer + "x")
    assert not check(example, "")


@pytest.mark.parametrize("task", EXACT)
def test_every_exact_example_has_an_answer_and_prompts_do_not_repeat(task: str) -> None:
    pool = examples(task, "test", 512)
    assert all(example.answer for example in pool)
    assert len({example.prompt for example in pool}) == 512


def test_worked_sums_and_numerals() -> None:
    assert worked_sum(957, 86 + 100) == "7+6+0=13;5+8+1=14;9+1+1=11 =1143"
    assert [roman_numeral(n) for n in (4, 1994, 3999)] == ["IV", "MCMXCIV", "MMMCMXCIX"]
    for example in examples("add", "validation", 50):
        steps, total = example.answer.split(" =")
        assert sum(int(step[-1]) * 10**i for i, step in enumerate(steps.split(";"))) == int(total) % 1000
