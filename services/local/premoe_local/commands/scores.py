"""`premoe scores`: every score that can rank experts, what measuring it takes, and who proposed it."""

from __future__ import annotations

import click

from premoe_local.console import json_option, print_json, print_table
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.offline.profile.scores import NEEDS, SCORES, USUAL, not_of


@click.command("scores")
@json_option
def command(as_json: bool) -> None:
    """List the scores that rank experts.

    `premoe profile --score NAME` measures what a score needs; `premoe patterns build --metric NAME` and `premoe eval
    sweep --score NAME` rank by it. Highest values are kept. docs/scores.md has the same list with formulas.
    """
    if as_json:
        entries = [
            {
                "name": score.name,
                "aliases": list(score.aliases),
                "needs": list(score.needs),
                "formula": score.formula,
                "source": score.source,
                "shared_over_layers": score.comparable,
                "usual": score.name in USUAL,
                "not_of": not_of(score, FAMILIES.values()),
            }
            for score in SCORES.values()
        ]
        print_json({"scores": entries})
        return
    rows = [
        (
            score.name + " *" * (score.name in USUAL),
            NEEDS[score.needs[-1]] if score.needs else "nothing",
            ", ".join(not_of(score, FAMILIES.values())) or "-",
            score.source,
        )
        for score in SCORES.values()
    ]
    print_table("Scores (* measured unless others are asked for)", ("score", "needs", "not of", "source"), rows)
