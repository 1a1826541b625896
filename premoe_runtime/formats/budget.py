"""Budgets: how many experts a pattern keeps and activates, and the slots that hold them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from premoe_runtime.formats.errors import InvalidInput

DEFAULT_SPARE_SLOTS = 2
_BUDGET = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Budget:
    """``a/b``: ``active`` experts per token out of ``kept`` routed experts a layer on average (PreMoE v1, section 1.1).

    ``kept`` x layers in all; an ``Allocation`` says how they spread.
    """

    active: int
    kept: int

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``"4/16"``. Raises InvalidInput when it is no such pair or ``b < a``."""
        match = _BUDGET.fullmatch(text.strip())
        if match is None:
            raise InvalidInput(f"budget {text!r} is not of the form a/b, for example 4/16", reason="BUDGET_SYNTAX")
        budget = cls(int(match[1]), int(match[2]))
        if budget.active < 1:
            raise InvalidInput(f"budget {text!r} activates no expert; a must be at least 1", reason="BUDGET_INVALID")
        if budget.kept < budget.active:
            raise InvalidInput(
                f"budget {text!r} keeps fewer experts than it activates; b must be at least {budget.active}",
                reason="BUDGET_INVALID",
            )
        return budget

    def check(self, *, top_k: int, num_experts: int) -> None:
        """Raise InvalidInput when a model with this top-k and expert count cannot run this budget."""
        if self.active > top_k:
            raise InvalidInput(
                f"budget {self} activates {self.active} experts, but the model's top-k is {top_k}; "
                "activate no more than that",
                reason="BUDGET_INVALID",
            )
        if self.kept > num_experts:
            raise InvalidInput(
                f"budget {self} keeps {self.kept} experts a layer, but the model has {num_experts}; "
                "keep no more than that",
                reason="BUDGET_INVALID",
            )

    def check_slots(self, slots: int, *, num_experts: int, spare: int = DEFAULT_SPARE_SLOTS) -> None:
        """Raise InvalidInput when ``slots`` leave no ``spare`` ones; slots for all experts always suffice."""
        if slots < min(self.kept + spare, num_experts):
            raise InvalidInput(
                f"{slots} slots a layer are too few for budget {self} and {spare} spare slots; "
                f"give at least {min(self.kept + spare, num_experts)}",
                reason="SLOTS_TOO_FEW",
            )

    def __str__(self) -> str:
        return f"{self.active}/{self.kept}"


def usual_budgets(top_k: int, num_experts: int) -> tuple[Budget, ...]:
    """The model's own top-k out of all, 3/4, 1/2, 1/4 and 1/8 of the experts, where as many are left."""
    shares = ((1, 1), (3, 4), (1, 2), (1, 4), (1, 8))
    kept = {num_experts * part // whole for part, whole in shares}
    return tuple(Budget(top_k, count) for count in sorted(kept, reverse=True) if count >= top_k)
