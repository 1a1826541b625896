"""Writes docs/scores.md: every score that ranks experts, from the registry.

python tools/scores_page.py            write it
python tools/scores_page.py --check    fail when it is stale, naming the command that mends it
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.offline.profile.criteria import gradients, outputs, router, weights
from premoe_runtime.offline.profile.criteria.score import Score
from premoe_runtime.offline.profile.scores import NEEDS, RANDOM, SCORES, USUAL, not_of

PAGE = Path(__file__).parents[1] / "docs" / "scores.md"
HEAD = f"""# Scores

Made by `python tools/scores_page.py` from `premoe_runtime/offline/profile/criteria/`. A score ranks the experts of a
model for a task; the highest are kept. `premoe profile --score NAME` measures what a score needs and no more,
`premoe patterns build --metric NAME` and `premoe eval sweep --score NAME` rank by it. Without `--score` a profile is
measured for {", ".join(USUAL)}. A PrunedModel names its score in `spec.patterns.metric`; its tasks are
profiled for it.

Of equal scores, the expert with more combine weight comes first, then the one that more tokens chose, then the lower
id. Scores marked *shared* carry the scale of their layer, so budgets are shared over the layers by them; with others,
every layer keeps equally many unless `--allocation shared` is given. Where a paper leaves something open, the formula
says what was chosen; so does the sign of MC-Suite's criteria, of which the paper tries both ends. Each is tested
against a plain reading of its formula on the stock class of transformers
([test_scores.py](../tests/unit/premoe_runtime/test_scores.py)).

s: raw logits; C: the experts that the router chose; p: softmax of s over C; g: combine weight; f: the expert's output;
c: tokens that chose the expert; y = Σ g f; a = ‖∂M/∂y‖ with M the answers' log-odds; ‖·‖: Euclidean.
"""
GROUPS = {
    "Routers": router.SCORES,
    "Outputs of experts": outputs.SCORES,
    "Gradients": gradients.SCORES,
    "Weights": weights.SCORES,
    "Baseline": (RANDOM,),
}


def row(score: Score) -> str:
    """One line of a table; bars in formulas are no borders of cells."""
    name = f"`{score.name}`" + "".join(f", `{alias}`" for alias in score.aliases)
    needs = NEEDS[score.needs[-1]] if score.needs else "nothing"
    formula = score.formula.replace("|", "\\|") + " *(shared)*" * score.comparable
    without = ", ".join(f"`{name}`" for name in not_of(score, FAMILIES.values())) or "-"
    return f"| {name} | {formula} | {needs} | {without} | {score.source} |"


def page() -> str:
    parts = [HEAD]
    for title, group in GROUPS.items():
        parts += [f"## {title}", "", "| score | formula | needs | not of | source |", "|---|---|---|---|---|"]
        parts += [*map(row, group), ""]
    assert sum(map(len, GROUPS.values())) == len(SCORES), "a group is missing"
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the page is stale")
    if parser.parse_args(arguments).check:
        if PAGE.is_file() and PAGE.read_text() == page():
            return 0
        print(f"{PAGE.name} is stale; run: python tools/scores_page.py", file=sys.stderr)
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
