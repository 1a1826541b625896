"""Findings as a table with what to do below it, or as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from premoe_local.console import print_json, print_table
from premoe_local.doctor.finding import Finding, worst


def show(findings: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        print_json({"worst": worst(findings), "findings": [asdict(finding) for finding in findings]})
        return
    rows = [(finding.check, finding.state, finding.found) for finding in findings]
    print_table("Findings", ("check", "state", "found"), rows)
    for state in ("error", "warning", "skipped"):
        for finding in findings:
            if finding.state == state and finding.why:
                source = f" ({finding.source})" if finding.source else ""
                click.echo(f"{state}: {finding.check}: {finding.found}")
                click.echo(f"  why: {finding.why}{source}")
                click.echo(f"  do:  {finding.change}")
    counts = [(sum(finding.state == state for finding in findings), state) for state in ("error", "warning", "skipped")]
    click.echo(
        ", ".join(f"{count} {state}{'' if state == 'skipped' or count == 1 else 's'}" for count, state in counts)
    )
