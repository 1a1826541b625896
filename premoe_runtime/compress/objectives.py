"""What training makes small: the answers' cross-entropy, and how far a student is from its teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from premoe_runtime.compress.student import Lesson, Passed, Student

Objective = Callable[[Passed, Lesson], Tensor]
"""The sum over the lesson's N predicted tokens of what is made small, with its graph."""


def answers_loss(passed: Passed, lesson: Lesson) -> Tensor:
    """Σ -log p of the tokens that follow."""
    return nn.functional.cross_entropy(passed.logits, lesson.wanted, reduction="sum")


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Σ over tokens of T² KL(teacher ‖ student) at temperature T; logits f32[N, V]."""
    wanted, found = (logits / temperature for logits in (teacher, student))
    total = nn.functional.kl_div(
        found.log_softmax(dim=-1), wanted.log_softmax(dim=-1), log_target=True, reduction="sum"
    )
    return total * temperature**2


def apart(teacher: Passed, student: Passed) -> Tensor:
    """Σ over tokens of ‖h - h'‖² / ‖h‖², mean over blocks; h: the teacher's outputs."""
    each = [
        ((own - other).square().sum(dim=-1) / own.square().sum(dim=-1).clamp(min=1e-12)).sum()
        for own, other in zip(teacher.hidden, student.hidden, strict=True)
    ]
    return torch.stack(each).mean()


class Distilled:
    """``answers`` · cross-entropy + ``logits`` · T² KL(teacher ‖ student) + ``hidden`` · ``apart``.

    The teacher runs beside the student and has as many blocks of the same hidden size.
    """

    def __init__(
        self,
        teacher: Student,
        *,
        answers: float = 0.0,
        logits: float = 1.0,
        hidden: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        self._teacher, self._temperature = teacher, temperature
        self._answers, self._logits, self._hidden = answers, logits, hidden

    def __call__(self, passed: Passed, lesson: Lesson) -> Tensor:
        with torch.no_grad():
            wanted = self._teacher.run(lesson)
        total = self._logits * divergence(wanted.logits, passed.logits, self._temperature)
        if self._answers:
            total = total + self._answers * answers_loss(passed, lesson)
        if self._hidden:
            total = total + self._hidden * apart(wanted, passed)
        return total
