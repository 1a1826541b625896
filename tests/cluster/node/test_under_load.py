"""What callers see of a release while it changes: a plain gRPC client asks at a fixed rate all the while.

The client is told no more than the Service's name and docs/service-config.json.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.end_to_end import Release
from support.end_to_end_fixtures import ground, release
from support.node_fixtures import node, shared_node
from support.open_loop import Client, open_loop
from support.under_load import (
    NEXT_VERSION,
    answered_by,
    generations,
    kill_worker,
    load,
    restart_operator,
    roll_back,
    roll_workers,
    scale,
    scraping,
    set_workers,
    upgrade_operator,
    workers,
)

__all__ = ["ground", "node", "release", "shared_node"]

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(600)]

RATE = 2.0
SHORT, LONG = 8, 24
"""Tokens asked for: quick answers, and ones that are under way when a worker dies."""
RECOVERY_S = 45.0
AFTER_KILL_S = 2.0
SETTLE_S = 8.0
"""What a new operator gets to look at everything."""


@pytest.fixture
def two_workers(release: Release) -> Release:
    """The release with two workers."""
    scale(release, 2)
    return release


@pytest.fixture
def upgraded(two_workers: Release) -> Iterator[Release]:
    """The same, rolled back to its first values afterwards."""
    yield two_workers
    roll_back(two_workers)


@pytest.fixture
def four_workers(release: Release) -> Iterator[Release]:
    """The release with four workers, and soon afterwards with one."""
    scale(release, 4)
    yield release
    set_workers(release, {"replicas": 1})


def show(client: Client) -> str:
    requests = client.requests()
    return f"{len(client.failed())} of {len(requests)} failed: {client.failed()[:5]}"


def test_a_rolling_update_of_workers_fails_no_request(two_workers: Release, tmp_path: Path) -> None:
    before = workers(two_workers)
    with open_loop(load(two_workers, RATE, SHORT), tmp_path) as client:
        roll_workers(two_workers)
    assert client.failed() == [], show(client)
    after = workers(two_workers)
    assert len(after) == len(before)
    assert not set(after) & set(before)


def test_a_restart_of_the_operator_fails_no_request_and_leaves_workers_alone(
    two_workers: Release, tmp_path: Path
) -> None:
    before = workers(two_workers), generations(two_workers)
    with open_loop(load(two_workers, RATE, SHORT), tmp_path) as client:
        restart_operator(two_workers)
        time.sleep(SETTLE_S)
    assert client.failed() == [], show(client)
    assert (workers(two_workers), generations(two_workers)) == before


def test_an_upgrade_of_the_operator_fails_no_request_and_leaves_workers_alone(
    upgraded: Release, tmp_path: Path
) -> None:
    before = workers(upgraded), generations(upgraded)
    with open_loop(load(upgraded, RATE, SHORT), tmp_path) as client:
        upgrade_operator(upgraded, NEXT_VERSION)
        time.sleep(SETTLE_S)
    assert client.failed() == [], show(client)
    assert (workers(upgraded), generations(upgraded)) == before


def test_a_killed_worker_fails_only_what_it_was_answering(four_workers: Release, tmp_path: Path) -> None:
    with scraping(four_workers, 4) as seen, open_loop(load(four_workers, RATE, LONG), tmp_path) as client:
        kill = kill_worker(four_workers)
    assert min(seen) < 4, "the gateway's metrics tell of the worker that is gone"
    assert kill.recovered_s < RECOVERY_S
    for request in client.failed():
        assert request.in_flight(kill.at) or kill.at < request.started < kill.at + AFTER_KILL_S, show(client)
        assert answered_by(four_workers, request) <= {kill.pod}, show(client)
