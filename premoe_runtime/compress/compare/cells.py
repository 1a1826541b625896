"""What a comparison measures, cell by cell, and the file that keeps what was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3

from premoe_runtime.compress.compare.entrants import Entrant, LeftOut
from premoe_runtime.compress.share import Share
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.offline.evaluation.exam import Answers
from premoe_runtime.offline.evaluation.journal import answers_in, document_of
from premoe_runtime.offline.evaluation.lines import Lines

RIGHT, RECOGNISED = "retrieval, right specialist", "retrieval, as recognised"


@dataclass(frozen=True, slots=True)
class Cell:
    """One method at one share of the bytes, calibrated on the texts of one seed."""

    entrant: Entrant
    share: Share
    seed: int


@dataclass(frozen=True, slots=True)
class Size:
    """What is served: ``num_bytes`` of experts' weights, padding left out, and what of the skeleton came on top.

    ``experts``: a layer's, of every layer. ``width``: neurons of each.
    """

    num_bytes: int
    experts: tuple[int, ...]
    width: int
    skeleton_bytes: int = 0

    @classmethod
    def of(cls, manifest: Manifest, before: Manifest | None = None) -> Size:
        """Of a pack; ``before``: the one that it was made of."""
        each = sum(field.num_bytes for field in manifest.layout.fields)
        width = next((field.shape[1] for field in manifest.layout.fields if field.name == "down"), 0)
        more = manifest.skeleton_bytes - (before or manifest).skeleton_bytes
        return cls(manifest.num_blobs * each, manifest.layer_experts, width, more)


@dataclass(frozen=True, slots=True)
class Made:
    """A pack that a method has made: its size, the time it took, and the most memory in bytes beyond its process's.

    ``memory`` is None where it was made in a process that does other things too.
    """

    model_id: str
    size: Size
    seconds: float
    memory: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What a cell gave: every task's answers."""

    made: Made
    answers: Mapping[str, Answers]


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a cell has no answers."""

    why: str


Row = Sequence[Measured] | Refused
"""One method at one share: a measurement a seed."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """All that was measured. ``rows``: by name and share, in the order of the report."""

    manifest: Manifest
    seeds: int
    shares: tuple[Share, ...]
    full: Mapping[str, Answers]
    rows: Mapping[tuple[str, Share], Row]
    sources: Mapping[str, str]
    left_out: Sequence[LeftOut]
    probe_bytes: int = 0
    """What a prober of its own would hold beside retrieval's experts."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.full)


def cell_key(facts: Mapping[str, object], model_id: str, tests: Mapping[str, str], arithmetic: Sequence[str]) -> str:
    """What a cell depends on: the method's facts, the model, the test prompts' digests, arithmetic and versions."""
    whole = json.dumps([model_id, facts, tests, list(arithmetic)], sort_keys=True)
    return blake3.blake3(whole.encode()).hexdigest()[:32]


class Cells:
    """Finished cells by their key. Raises what ``Lines`` raises."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)

    def get(self, key: str) -> Measured | None:
        """None for a cell that is not finished, or whose line is spoilt."""
        document = self._lines.found.get(key)
        return None if document is None else _measured(document)

    def put(self, key: str, cell: Measured) -> None:
        answers = {task: document_of(one) for task, one in cell.answers.items()}
        self._lines.put(key, {"made": made_document(cell.made), "answers": answers})


def made_document(made: Made) -> dict[str, Any]:
    """As JSON holds it."""
    size = made.size
    return {
        "model_id": made.model_id,
        "bytes": size.num_bytes,
        "skeleton_bytes": size.skeleton_bytes,
        "experts": list(size.experts),
        "width": size.width,
        "seconds": made.seconds,
        "memory": made.memory,
    }


def made_in(document: Mapping[str, Any]) -> Made:
    """What a document says. Raises KeyError, TypeError, ValueError."""
    size = Size(
        int(document["bytes"]),
        tuple(map(int, document["experts"])),
        int(document["width"]),
        int(document["skeleton_bytes"]),
    )
    memory = document["memory"]
    return Made(str(document["model_id"]), size, float(document["seconds"]), None if memory is None else int(memory))


def _measured(document: Mapping[str, Any]) -> Measured | None:
    try:
        found = {task: answers_in(one) for task, one in document["answers"].items()}
        made = made_in(document["made"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    answers = {task: one for task, one in found.items() if one is not None}
    return Measured(made, answers) if len(answers) == len(found) else None
