from __future__ import annotations

from premoe_local import tasks
from premoe_local.demo.report import Memory, document, recognition, request_rows, served_accuracy, summary_rows
from premoe_local.demo.requests import Served, plan_prompts


def served(task: str, decision: str, nearest: str, answer: str = "", right: str = "42") -> Served:
    return Served(tasks.Example(task, "prompt", right), decision, nearest, 0.9, 3, 4096, 1.5, 50.0, answer)


SERVED = [
    served("add", "specialist", "add", " 42 "),
    served("add", "specialist", "rev", "43"),
    served("rev", "generalist", "rev", "42"),
    served("py", "specialist", "py", "anything"),
    served("sort", "generalist", "rev", "42"),
    served("sub", "specialist", "add", "7", right=""),
]
MEMORY = Memory(total=1000, device=300, host=250)
ACCURACY = {"full": 1.0, "specialist": 2 / 3, "generalist": 0.1, "random": 0.0}


def test_recognition_counts_every_kind_once() -> None:
    found = recognition(SERVED)
    assert (found.known, found.recognised, found.wrong_task, found.abstained) == (4, 2, 1, 1)
    assert (found.unknown, found.abstained_on_unknown, found.false_specialists) == (2, 1, 1)


def test_only_exact_tasks_are_judged_together() -> None:
    assert [each.correct for each in SERVED] == [True, False, True, None, True, None]
    assert served_accuracy(SERVED) == 2 / 3


def test_document_has_exactly_the_promised_fields() -> None:
    found = document(SERVED, MEMORY, ACCURACY)
    assert found["requests"][2] == {  # type: ignore[index]
        "domain": "rev",
        "task": None,
        "decision": "generalist",
        "score": 0.9,
        "blobs_loaded": 3,
        "bytes_loaded": 4096,
        "swap_ms": 1.5,
        "tokens_per_s": 50.0,
        "answer": "42",
        "correct": True,
    }
    assert found["summary"] == {
        "experts_total_bytes": 1000,
        "experts_resident_bytes": 300,
        "accuracy": ACCURACY,
    }


def test_tables() -> None:
    assert [row[-1] for row in request_rows(SERVED)] == ["yes", "no", "yes", "", "yes", ""]
    totals = {row[0]: row[1] for row in summary_rows(SERVED, MEMORY, ACCURACY)}
    assert totals["expert bytes on the device"] == "300 B (30.0%)"
    assert totals["known prompts recognised"] == "2 of 4"
    assert totals["unknown prompts given a specialist"] == "1 of 2"


def test_prompts_are_the_same_every_time_and_of_every_kind() -> None:
    prompts = plan_prompts(2)
    assert prompts == plan_prompts(2)
    assert {prompt.task for prompt in prompts} == {*tasks.STORED, *tasks.UNKNOWN}
    assert sum(prompt.task == "add" for prompt in prompts) == 2
