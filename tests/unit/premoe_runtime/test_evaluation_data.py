import pytest

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.calibration import Example, Message
from premoe_runtime.offline.evaluation.data import TaskData, check_tasks, drawn


def examples(count: int, start: int = 0) -> list[Example]:
    return [Example((Message("user", f"q{n}"),), "a", n) for n in range(start, start + count)]


def prompts(part: tuple[Example, ...]) -> set[str]:
    return {one.messages[0].content for one in part}


def test_one_file_is_cut_into_a_test_and_texts_that_share_nothing() -> None:
    made = drawn("x", examples(120), seeds=3)
    parts = [prompts(made.test), *map(prompts, made.calibration)]
    assert [len(part) for part in parts] == [40, 26, 26, 26]
    assert len(set.union(*parts)) == 118


def test_the_cut_does_not_follow_the_file_and_counts_a_prompt_once() -> None:
    given = examples(100)
    made = drawn("x", given, seeds=2, prompts=10)
    assert drawn("x", [*reversed(given), *given], seeds=2, prompts=10) == made
    assert prompts(made.test) != {f"q{n}" for n in range(10)}


def test_a_calibration_file_loses_what_is_asked() -> None:
    made = drawn("x", examples(10), examples(60), seeds=2, documents=25)
    assert len(made.test) == 10
    calibrated = {text for part in made.calibration for text in prompts(part)}
    assert not prompts(made.test) & calibrated
    assert [len(text) for text in made.calibration] == [25, 25]


@pytest.mark.parametrize(("calibration", "seeds"), [([], 3), (examples(1), 1), (examples(59, 100), 3)])
def test_too_few_calibration_prompts_are_refused(calibration: list[Example], seeds: int) -> None:
    with pytest.raises(InvalidInput, match=f"task x: .* do not make {seeds} texts of 20"):
        drawn("x", examples(10), calibration, seeds=seeds)


def test_tasks_must_have_the_same_seeds_and_something_to_ask() -> None:
    one = tuple(examples(2))
    assert check_tasks({"a": TaskData((one, one), one), "b": TaskData((one, one), one)}) == 2
    for bad in ({}, {"a": TaskData((one,), ())}, {"a": TaskData((one,), one), "b": TaskData((one, one), one)}):
        with pytest.raises(InvalidInput, match="every task needs test prompts"):
            check_tasks(bad)
