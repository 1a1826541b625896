"""Operator at scale: 1,000 PrunedModels with 10 fake workers each, on a real control plane of this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from _report import Report, json_option
from support.cluster_fixtures import create_namespace
from support.control_plane import running_control_plane
from support.scale import CREATES_PER_S, percentile, run_scale


@click.command()
@click.option("--models", default=1000, show_default=True, help="PrunedModels.")
@click.option("--workers", default=10, show_default=True, help="Worker pods of each.")
@click.option("--writes", default=60, show_default=True, help="Spec changes after all are Ready, one a second.")
@click.option("--quiet", "quiet_s", default=120.0, show_default=True, help="Seconds in which nothing changes.")
@click.option("--timeout", "timeout_s", default=3600.0, show_default=True, help="Seconds until all must be Ready.")
@json_option
def main(models: int, workers: int, writes: int, quiet_s: float, timeout_s: float, json_file: Path | None) -> None:
    """Time until all are Ready, time from write to observed, memory and quiet calls of the operator."""
    settings = {"models": models, "workers_each": workers, "creates_per_s": CREATES_PER_S, "writes_per_s": 1}
    report = Report("operator at scale", settings)
    with tempfile.TemporaryDirectory() as folder, running_control_plane(Path(folder, "cluster")) as cluster:
        figures = run_scale(
            cluster,
            create_namespace(cluster),
            Path(folder),
            models=models,
            workers_each=workers,
            writes=writes,
            quiet_s=quiet_s,
            timeout_s=timeout_s,
            clean_up=False,
            tell=lambda text: click.echo(text, err=True),
        )
    report.values["pods"] = figures.pods
    report.values["converge_s"] = figures.converge_s
    report.samples("write to observed", figures.observed_s)
    report.values["write_to_observed_p95_s"] = percentile(figures.observed_s, 0.95)
    report.values["operator_rss_mib"] = figures.operator_rss_mib
    report.values["operator_restarts"] = figures.restarts
    report.values["quiet_calls_per_hour"] = figures.quiet_calls * 3600 / figures.quiet_s
    report.finish(json_file)


if __name__ == "__main__":
    main()
