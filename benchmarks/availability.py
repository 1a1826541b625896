"""Requests that fail while a release changes: worker rollout, operator restart and upgrade, a worker killed.

    python -m benchmarks availability [--rate 3 --workers 4] [--json FILE]

The charts on the test node of this machine (root), the fixture model, and one plain gRPC client that asks at a fixed
rate under docs/service-config.json. Every ratio is failed requests over all of that part.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import click
from _report import Report, json_option
from support.end_to_end import running_ground, running_release
from support.node import running_node
from support.open_loop import Client, Load, open_loop
from support.under_load import (
    NEXT_VERSION,
    generations,
    kill_worker,
    load,
    restart_operator,
    roll_workers,
    scale,
    upgrade_operator,
    workers,
)

ROLLED_WORKERS = 2
SHORT, LONG = 8, 24
"""Tokens asked for: quick answers, and ones that are under way when a worker dies."""
T = TypeVar("T")


@click.command()
@click.option("--rate", default=3.0, show_default=True, help="Requests a second.")
@click.option("--workers", "count", default=4, show_default=True, help="Workers of which one is killed.")
@click.option("--kills", default=3, show_default=True, help="Workers killed, one after the other; at most --workers.")
@click.option(
    "--quiet", "quiet_s", default=60.0, show_default=True, help="Seconds watched after a restart, upgrade or kill."
)
@json_option
def main(rate: float, count: int, kills: int, quiet_s: float, json_file: Path | None) -> None:
    """Failed requests of each part, and seconds until a killed worker is Ready again."""
    settings = {"rate": rate, "rolled_workers": ROLLED_WORKERS, "workers": count, "quiet_s": quiet_s}
    report = Report("availability", settings | {"tokens": f"{SHORT}, {LONG} when killed"})
    with tempfile.TemporaryDirectory() as name, running_node(Path(name, "node")) as node, node.network():
        folder = Path(name, "ground")
        folder.mkdir()
        with running_ground(node, folder) as ground, running_release(ground) as release:
            scale(release, ROLLED_WORKERS)
            short, long = load(release, rate, SHORT), load(release, rate, LONG)
            report.values["rollout_s"], client = _under(short, folder / "rollout", partial(roll_workers, release))
            _note(report, "rollout", client)
            before = workers(release), generations(release)
            restart, upgrade = partial(restart_operator, release), partial(upgrade_operator, release, NEXT_VERSION)
            for part, change in (("restart", restart), ("upgrade", upgrade)):
                _, client = _under(short, folder / part, partial(_watched, change, quiet_s))
                _note(report, f"operator {part}", client)
                report.values[f"workers kept at {part}"] = (workers(release), generations(release)) == before
            scale(release, count)
            recovered = []
            for number in range(kills):
                kill, client = _under(
                    long, folder / f"kill-{number}", partial(_watched, partial(kill_worker, release), quiet_s)
                )
                in_flight = sum(request.in_flight(kill.at) for request in client.requests())
                _note(report, f"kill {number}", client, in_flight=in_flight)
                recovered.append(kill.recovered_s)
            report.samples("killed to Ready", recovered)
    report.finish(json_file)


def _under(load: Load, folder: Path, change: Callable[[], T]) -> tuple[T, Client]:
    """What a change returned, and the client that asked meanwhile."""
    with open_loop(load, folder) as client:
        result = change()
    return result, client


def _watched(change: Callable[[], T], quiet_s: float) -> T:
    result = change()
    time.sleep(quiet_s)
    return result


def _note(report: Report, name: str, client: Client, **more: int) -> None:
    requests, failed = client.requests(), client.failed()
    counts = {"failed": len(failed), "requests": len(requests), "ratio": len(failed) / len(requests)}
    longest = max(request.ended - request.started for request in requests)
    report.values[name] = {**counts, **more, "longest_s": longest}


if __name__ == "__main__":
    main()
