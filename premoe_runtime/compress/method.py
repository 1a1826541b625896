"""What a method is: what it changes and needs, its settings, and the function that makes a smaller model of a pack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from premoe_runtime.compress.result import Compressed
from premoe_runtime.compress.share import Share
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.calibration import Example, calibration_digest

Change = Literal["count", "width", "weights", "router", "skeleton", "nothing"]
"""Experts a layer; neurons an expert; experts' weights; routers' rows; other tensors."""
Need = Literal["prompts", "answers", "a backward pass", "training", "fine-tuned packs"]


class Report(Protocol):
    """Told how far a method is; ``total`` and ``advance`` count whatever the stage counts."""

    def stage(self, what: str, total: float) -> None: ...

    def advance(self, amount: float) -> None: ...

    def note(self, text: str) -> None: ...


class Quiet:
    """Reports nothing."""

    def stage(self, what: str, total: float) -> None: ...

    def advance(self, amount: float) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a method.

    ``data``: examples by task. ``settings``: of the method's own class. ``work``: a folder for what an interrupted run
    leaves to the next one of the same ``key``; the caller removes it. ``beside``: URL of the store for what a method
    makes beside its pack; empty: that of the old pack.
    """

    old: PackWeights
    data: Mapping[str, Sequence[Example]]
    share: Share
    settings: Any
    work: Path
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    report: Report = field(default_factory=Quiet)
    beside: str = ""

    @property
    def data_digests(self) -> dict[str, str]:
        return {task: calibration_digest(examples) for task, examples in self.data.items()}


@dataclass(frozen=True, slots=True)
class Method:
    """A method of compression. ``settings`` is a frozen dataclass whose fields say ``help`` in their metadata.

    ``loads``: which engines load the result, in words. ``cost``: what a run takes, in words.
    """

    name: str
    title: str
    source: str
    changes: tuple[Change, ...]
    needs: tuple[Need, ...]
    cost: str
    loads: str
    settings: type
    compress: Callable[[Job], Compressed]

    def check(self, job: Job) -> None:
        """Raise InvalidInput for a job that lacks what every run needs (DATA_MISSING, LABELS_MISSING)."""
        if ("prompts" in self.needs or "answers" in self.needs) and not job.data:
            raise InvalidInput(
                f"{self.name} needs examples of what the model is for; give --data TASK=FILE.jsonl",
                reason="DATA_MISSING",
            )
        if "answers" not in self.needs:
            return
        for task, examples in job.data.items():
            for one in examples:
                if not (one.answer or "").strip():
                    raise InvalidInput(
                        f'{self.name} needs answers, and line {one.line} of task {task} has none; add an "answer" to '
                        "every line",
                        reason="LABELS_MISSING",
                    )


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A neighbour that makes no pack of a pack; ``use``: where it is."""

    name: str
    title: str
    source: str
    changes: tuple[Change, ...]
    needs: tuple[str, ...]
    cost: str
    loads: str
    use: str


def setting(default: Any, help: str) -> Any:
    """A field of a method's settings."""
    return field(default=default, metadata={"help": help})
