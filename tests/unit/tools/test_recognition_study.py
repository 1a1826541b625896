"""The study of recognition rules: sets are built as the product builds them, and every outcome is counted once."""

from __future__ import annotations

import numpy as np
import pytest
from recognition.outcomes import measure
from recognition.rules import RULES, Rule, built
from recognition.signatures import Asked, Seen, first_layer, hidden_state

from premoe_runtime.formats.signature import Turns

TASKS = ("add", "rev")
SIZE = 8


def seen(axis: int, draw: np.random.Generator, spread: float = 0.05) -> Seen:
    root = np.abs(np.eye(SIZE)[axis] + spread * draw.normal(size=SIZE)).astype(np.float32)
    both = np.stack([root, root])
    return Seen(both, both, root, root)


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_makes_a_set_that_knows_its_tasks(name: str, draw: np.random.Generator) -> None:
    rule: Rule = RULES[name]
    calibration = {task: [seen(axis, draw) for _ in range(60)] for axis, task in enumerate(TASKS)}
    found = built(calibration, rule)
    assert [member.task for member in found.pattern_set.specialists] == list(TASKS)
    asked = [
        *(Asked("plain", task, task, Turns(seen(axis, draw))) for axis, task in enumerate(TASKS) for _ in range(10)),
        Asked("system.brief", "add", "add", Turns(seen(5, draw), seen(0, draw, 0.01))),
        Asked("plain", "prose", "prose", Turns(seen(4, draw))),
        Asked("unknown", "sort", "sort", Turns(seen(3, draw))),
        Asked("stranger", "", "chess", Turns(seen(6, draw))),
        Asked("stranger after", "", "chess", Turns(seen(6, draw), seen(6, draw), (seen(0, draw),))),
    ]
    figures = measure(found, rule, asked, TASKS)
    assert figures["recognised"]["plain"] >= 90
    assert figures["recognised"]["system.brief"] == (100 if rule.conversation else 0)
    assert figures["refused"]["other task"] == 100
    assert set(figures["refused"]) == {"other task", "unknown", "far", "far after"}
    assert figures["families"] == {"chess": 100}
    assert figures["wrong"] == 0


def test_scores_of_views_side_by_side_are_means_by_weight(draw: np.random.Generator) -> None:
    calibration = {task: [seen(axis, draw) for _ in range(60)] for axis, task in enumerate(TASKS)}
    weights = (0.75, 0.25)
    both = built(calibration, Rule(blocks=tuple(zip(weights, (first_layer, hidden_state), strict=True)))).view
    alone = [built(calibration, Rule(blocks=((1.0, view),))).view for view in (first_layer, hidden_state)]
    one, other = seen(0, draw, 0.3), seen(1, draw, 0.3)
    cosines = [view(one) @ view(other) for view in alone]
    np.testing.assert_allclose(both(one) @ both(other), np.dot(weights, cosines), atol=1e-5)
