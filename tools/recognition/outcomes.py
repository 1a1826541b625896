"""What a set makes of requests: shares of them, in per cent."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from premoe_local.tasks.wordings import STRANGERS

from premoe_runtime.formats.conversation import recognise_turn
from premoe_runtime.formats.signature import Turns
from recognition.rules import Built, Rule
from recognition.signatures import Asked


def measure(found: Built, rule: Rule, asked: Sequence[Asked], stored: Sequence[str]) -> dict[str, Any]:
    """Recognition by kind, wrong specialists among known requests, and abstention on strangers and other tasks."""
    known: dict[str, list[bool]] = defaultdict(list)
    refused: dict[str, list[bool]] = defaultdict(list)
    families: dict[str, list[bool]] = defaultdict(list)
    wrong: list[bool] = []
    for one in asked:
        signatures = one.signatures(found.view)
        if not rule.conversation:
            signatures = Turns(signatures.whole)
        decision = recognise_turn(found.pattern_set, signatures)
        if one.task in stored:
            known[one.kind].append(decision.recognised and decision.task == one.task)
            wrong.append(decision.recognised and decision.task != one.task)
        elif one.task:
            if one.kind in ("plain", "unknown"):
                refused[one.kind.replace("plain", "other task")].append(not decision.recognised)
        else:
            near = "near" if STRANGERS[one.family].near in stored else "far"
            refused[one.kind.replace("stranger", near)].append(not decision.recognised)
            if one.kind == "stranger":
                families[one.family].append(not decision.recognised)
    return {
        "recognised": {kind: _percent(hits) for kind, hits in known.items()},
        "wrong": _percent(wrong),
        "refused": {kind: _percent(hits) for kind, hits in refused.items()},
        "families": {family: _percent(hits) for family, hits in families.items()},
    }


def _percent(hits: Sequence[bool]) -> float:
    return round(100 * sum(hits) / len(hits), 1)
