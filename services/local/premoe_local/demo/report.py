"""What the demo shows: one table of requests, one of totals, and the same as JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from premoe_local import tasks
from premoe_local.console import human_bytes
from premoe_local.demo.requests import Served

REQUEST_COLUMNS = ("domain", "task", "decision", "score", "blobs", "moved", "swap ms", "tokens/s", "answer", "right")
SUMMARY_COLUMNS = ("what", "this run", "full model")
_ANSWER_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of routed experts: all of them, in device slots (spare ones included), in host memory."""

    total: int
    device: int
    host: int


@dataclass(frozen=True, slots=True)
class Recognition:
    """How recognition did. False specialists: unknown prompts that got some task's experts."""

    known: int
    recognised: int
    wrong_task: int
    abstained: int
    unknown: int
    abstained_on_unknown: int
    false_specialists: int


def recognition(served: Sequence[Served]) -> Recognition:
    known = [each for each in served if each.example.task in tasks.STORED]
    unknown = [each for each in served if each.example.task not in tasks.STORED]
    right = sum(each.recognised and each.nearest == each.example.task for each in known)
    specialists = sum(each.recognised for each in known)
    false = sum(each.recognised for each in unknown)
    return Recognition(
        known=len(known),
        recognised=right,
        wrong_task=specialists - right,
        abstained=len(known) - specialists,
        unknown=len(unknown),
        abstained_on_unknown=len(unknown) - false,
        false_specialists=false,
    )


def served_accuracy(served: Sequence[Served]) -> float:
    """Share of right answers among prompts of the exact tasks, whatever pattern retrieval chose for them."""
    judged = [each for each in served if each.example.task in tasks.EXACT]
    return sum(bool(each.correct) for each in judged) / len(judged)


def document(served: Sequence[Served], memory: Memory, accuracy: Mapping[str, float]) -> dict[str, object]:
    """The report as JSON: ``accuracy`` has full, specialist (as served), generalist and random."""
    requests = [
        {
            "domain": each.example.task,
            "task": each.nearest if each.recognised else None,
            "decision": each.decision,
            "score": each.score,
            "blobs_loaded": each.blobs_loaded,
            "bytes_loaded": each.bytes_loaded,
            "swap_ms": each.swap_ms,
            "tokens_per_s": each.tokens_per_s,
            "answer": each.answer,
            "correct": each.correct,
        }
        for each in served
    ]
    names = ("full", "specialist", "generalist", "random")
    summary = {
        "experts_total_bytes": memory.total,
        "experts_resident_bytes": memory.device,
        "accuracy": {name: accuracy[name] for name in names},
    }
    return {"requests": requests, "summary": summary}


def request_rows(served: Sequence[Served]) -> list[tuple[object, ...]]:
    return [
        (
            each.example.task,
            each.nearest if each.recognised else "-",
            each.decision,
            f"{each.score:.3f}",
            each.blobs_loaded,
            human_bytes(each.bytes_loaded),
            f"{each.swap_ms:.1f}",
            f"{each.tokens_per_s:.0f}",
            _shorten(each.answer),
            {True: "yes", False: "no", None: ""}[each.correct],
        )
        for each in served
    ]


def summary_rows(served: Sequence[Served], memory: Memory, accuracy: Mapping[str, float]) -> list[tuple[object, ...]]:
    found = recognition(served)
    swaps = [each for each in served if each.blobs_loaded]
    return [
        ("expert bytes on the device", _share(memory.device, memory.total), human_bytes(memory.total)),
        ("expert bytes in host memory", _share(memory.host, memory.total), "0 B"),
        ("right answers: served here", f"{accuracy['specialist']:.1%}", f"{accuracy['full']:.1%}"),
        ("right answers: generalist", f"{accuracy['generalist']:.1%}", ""),
        ("right answers: random experts", f"{accuracy['random']:.1%}", ""),
        ("known prompts recognised", f"{found.recognised} of {found.known}", ""),
        ("known prompts abstained on", f"{found.abstained} of {found.known}", ""),
        ("known prompts taken for another task", f"{found.wrong_task} of {found.known}", ""),
        ("unknown prompts abstained on", f"{found.abstained_on_unknown} of {found.unknown}", ""),
        ("unknown prompts given a specialist", f"{found.false_specialists} of {found.unknown}", ""),
        ("requests that had to swap", f"{len(swaps)} of {len(served)}", ""),
        ("bytes swapped in", human_bytes(sum(each.bytes_loaded for each in served)), ""),
    ]


def _share(part: int, whole: int) -> str:
    return f"{human_bytes(part)} ({part / whole:.1%})"


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _ANSWER_WIDTH else line[: _ANSWER_WIDTH - 1] + "…"
