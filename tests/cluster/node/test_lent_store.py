"""Two releases on a node, closed by policies and mutual TLS: one lends the other its expert store and retrieval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.certificates import Authority
from support.end_to_end import (
    MAX_TOKENS,
    MODEL,
    TASKS,
    TLS_SECRET,
    Ground,
    Release,
    calibration,
    certificates,
    installed,
    prepared_namespace,
    prompts,
    pruned_model,
)
from support.end_to_end_fixtures import ground
from support.metrics import Scrape, scrape
from support.node_fixtures import node, shared_node
from support.node_pods import apply, execute
from support.node_release import STORE

__all__ = ["ground", "node", "shared_node"]

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(900)]

LENT = ("premoe-expert-store", "premoe-retrieval")
TLS = {"tls": {"mode": "Secret", "secretName": TLS_SECRET}}
CONNECTS = """
import socket
try:
    socket.create_connection(({host!r}, 50051), timeout=2).close()
    print("open")
except TimeoutError:
    print("dropped")
"""


def lender(guest: str) -> dict[str, Any]:
    """Values of the release that lends: nobody looks after PrunedModels there."""
    named = {"release": "premoe", "namespace": guest, "workerNamespaces": [guest]}
    return {**TLS, "guests": [named], "operator": {"enabled": False}}


def borrower(host: str) -> dict[str, Any]:
    """Values of the guest: its operator may go out to the other's expert store."""
    there = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": host}}}
    way = {"to": [there], "ports": [{"protocol": "TCP", "port": 50051}]}
    return {**TLS, "networkPolicy": {"egress": {"expertStores": [way]}}}


def borrowing(host: str) -> dict[str, Any]:
    """The PrunedModel, with one task."""
    made = pruned_model()
    store, retrieval = LENT
    made["spec"] |= {
        "expertStoreRef": {"name": store, "namespace": host},
        "retrievalRef": {"name": retrieval, "namespace": host},
    }
    made["spec"]["patterns"] = {"tasks": made["spec"]["patterns"]["tasks"][:1]}
    return made


@pytest.fixture
def releases(ground: Ground) -> Iterator[tuple[Release, Release]]:
    """The one that lends, and the one that borrows and serves. They share an authority and an object store."""
    authority = Authority()
    with prepared_namespace(ground) as host, prepared_namespace(ground) as guest:
        apply(ground.node, host, certificates(host, authority, *LENT))
        apply(ground.node, guest, certificates(guest, authority))
        lending = installed(ground, host, f"{STORE}/{host}", lender(guest))
        serving = installed(ground, guest, lending.store, borrower(host))
        apply(ground.node, guest, calibration(TASKS[0]), borrowing(host))
        serving.wait_served()
        yield lending, serving


def metrics(release: Release, component: str) -> Scrape:
    return scrape(f"{release.address(component)}:50054")


def connection(release: Release, component: str, host: str) -> str:
    """Whether a connection from a component's pod is `open` or `dropped`."""
    pod = release.pods(component)[0]["metadata"]["name"]
    return execute(release.node, release.namespace, pod, CONNECTS.format(host=host)).strip()


def test_a_model_is_served_from_the_store_of_another_release(releases: tuple[Release, Release]) -> None:
    lending, serving = releases
    prompt = prompts(1)[0]
    answer = serving.openai().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=MAX_TOKENS, temperature=0
    )
    assert answer.choices[0].message.content
    assert serving.condition("Available") == "True"
    sent = "premoe:store_sent_bytes_total"
    assert metrics(lending, "expert-store").value(sent) > 0
    assert metrics(serving, "expert-store").value(sent) == 0
    # Guests come as workers and operator, which reads manifests and calls nothing else.
    ways = [("operator", "expert-store"), ("operator", "retrieval"), ("gateway", "expert-store")]
    found = {way: connection(serving, way[0], lending.address(way[1])) for way in ways}
    assert found == {ways[0]: "open", ways[1]: "dropped", ways[2]: "dropped"}
