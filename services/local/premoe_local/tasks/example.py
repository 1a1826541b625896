"""The nouns of the tasks: an example, a payload, and the ways to word it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from premoe_local.tasks.draw import Draw

VALIDATION_WORDINGS = 4
Split = Literal["train", "calibration", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt of a task and the answer it should get."""

    task: str
    prompt: str
    """What the user says; for open text, the opening fragment."""
    answer: str
    """The exact answer; for open text, the continuation; "" where no answer is known."""


@dataclass(frozen=True, slots=True)
class Payload:
    """What an example is about, before it is put into words."""

    key: str
    """Decides the split; "" puts the payload in every split (made-up facts cannot be generalised)."""
    fields: dict[str, str]
    """Values for the placeholders of a wording."""
    answer: str


@dataclass(frozen=True, slots=True)
class Generator:
    """A task: how to draw a payload and how to word it."""

    payload: Callable[[Draw], Payload]
    seen: tuple[str, ...]
    """Wordings of the calibration split, then `VALIDATION_WORDINGS` of the validation split."""
    unseen: tuple[str, ...]
    """Wordings of the test split alone (training has both kinds)."""
    framed: bool = True
    """Whether a sentence of small talk may stand around the wording."""

    def wordings(self, split: Split) -> tuple[str, ...]:
        """The wordings of a split; those of calibration, validation and test differ, training has them all."""
        if split == "test":
            return self.unseen
        if split == "calibration":
            return self.seen[:-VALIDATION_WORDINGS]
        if split == "validation":
            return self.seen[-VALIDATION_WORDINGS:]
        return self.seen + self.unseen
