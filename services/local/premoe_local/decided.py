"""The card's table of what a set's decisions cost."""

from __future__ import annotations

from collections.abc import Sequence

from premoe_local.console import print_table
from premoe_runtime.formats.set_card import Decided

_STANDS_IN = {"full": "every expert", "reject": "nothing, refused"}


def print_decided(decided: Sequence[Decided]) -> None:
    """Print ways that prompts were decided, and all of them together for each budget; nothing where there are none."""
    if not decided:
        return
    tasks = len({one.task for one in decided})
    rows: list[tuple[str, ...]] = []
    for budget in dict.fromkeys(one.budget for one in decided):
        some = [one for one in decided if one.budget == budget]
        rows += [
            (budget, one.task, one.pattern or _STANDS_IN[one.kind], *map(_percent, (one.share, one.accuracy, one.lost)))
            for one in some
        ]
        shares = [sum(one.share for one in some if _wrong(one) is wrong) / tasks for wrong in (True, False)]
        lost = [sum(one.lost for one in some if _wrong(one) is wrong) / tasks for wrong in (True, False)]
        rows += [
            (budget, "all", what, _percent(share), "", _percent(cost))
            for what, share, cost in zip(("another task's specialist", "no specialist"), shares, lost, strict=True)
        ]
    columns = ("budget", "prompts of", "run on", "% of them", "% right, were it all", "answers lost of 100")
    print_table("What decisions cost, on held-out prompts", columns, rows)


def _wrong(one: Decided) -> bool | None:
    """True: another task's specialist; False: none at all; None: its own."""
    return None if one.pattern == one.task else one.kind == "specialist"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
