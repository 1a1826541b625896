"""Two replicas and one Lease: one acts, the other takes over, and never do both write."""

from __future__ import annotations

import signal
import time
from typing import Any

import httpx
import pytest
from support.cluster_fixtures import control_plane, namespace
from support.operator_fixtures import site
from support.operator_process import Site, pruned_model, running_operator, wait
from support.processes import Child

__all__ = ["control_plane", "namespace", "site"]

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(240)]

RELEASE_TIMES: dict[str, Any] = {"lease_duration_s": 15, "lease_fence_s": 10, "lease_renew_s": 2}

NEWS = 50


def holder(site: Site) -> str:
    lease = site.get("leases", "premoe-operator")
    assert lease is not None
    return str((lease.get("spec") or {}).get("holderIdentity", ""))


def leads(child: Child) -> bool:
    return "premoe_operator_leader 1.0" in httpx.get(f"{child.ready['url']}/metrics").text


def is_observed(site: Site, name: str) -> bool:
    found = site.model(name)
    return bool(found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"])


def test_the_other_acts_within_30_s_of_a_sigkill(site: Site) -> None:
    with running_operator(site, identity="first", **RELEASE_TIMES) as first:
        wait(lambda: leads(first), 30, lambda: "first does not lead")
        with running_operator(site, identity="second", **RELEASE_TIMES) as second:
            site.create("prunedmodels", pruned_model("one"))
            wait(lambda: is_observed(site, "one"), 30, lambda: "not observed")
            assert not leads(second)
            assert "watch_age" not in _samples(second)
            assert httpx.get(f"{second.ready['url']}/readyz").status_code == 200
            first.process.kill()
            first.process.wait()
            killed = time.monotonic()
            site.create("prunedmodels", pruned_model("two"))
            wait(lambda: is_observed(site, "two"), 30, lambda: f"holder {holder(site)}")
            assert time.monotonic() - killed < 30
            assert holder(site) == "second"


def _samples(child: Child) -> str:
    lines = httpx.get(f"{child.ready['url']}/metrics").text.splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def test_sigterm_hands_over_at_once(site: Site) -> None:
    with running_operator(site, identity="first", **RELEASE_TIMES) as first:
        wait(lambda: leads(first), 30, lambda: "first does not lead")
        with running_operator(site, identity="second", **RELEASE_TIMES) as second:
            assert first.stop() == 0
            stopped = time.monotonic()
            wait(lambda: leads(second), 10, lambda: f"holder {holder(site)}")
            assert time.monotonic() - stopped < 10


def test_a_leader_that_stood_still_writes_nothing_and_ends(site: Site) -> None:
    with running_operator(site, identity="first") as first:
        wait(lambda: leads(first), 30, lambda: "first does not lead")
        with running_operator(site, identity="second") as second:
            first.process.send_signal(signal.SIGSTOP)
            wait(lambda: leads(second), 30, lambda: f"holder {holder(site)}")
            site.create("prunedmodels", pruned_model("one"))
            site.wait_for("one", "ArtifactsReady", "False", "Unschedulable")  # after which nothing happens
            version = site.model("one")["metadata"]["resourceVersion"]
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait(30) == 6
            assert "Lease" in first.stderr().splitlines()[-1]
            assert holder(site) == "second"
            assert site.model("one")["metadata"]["resourceVersion"] == version


def test_a_leader_that_loses_its_lease_amid_news_says_so_in_one_line(site: Site) -> None:
    with running_operator(site, identity="first") as first:
        wait(lambda: leads(first), 30, lambda: "first does not lead")
        with running_operator(site, identity="second") as second:
            first.process.send_signal(signal.SIGSTOP)
            wait(lambda: leads(second), 30, lambda: f"holder {holder(site)}")
            for number in range(NEWS):  # its watches are amid these when it is told to end
                site.create("prunedmodels", pruned_model(f"news-{number}", suspend=True))
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait(60) == 6
            said = first.stderr()
            assert "Traceback" not in said, said
            assert [line for line in said.splitlines() if line.startswith("error")] == [said.splitlines()[-1]]


def test_without_its_lease_nothing_is_written(site: Site) -> None:
    site.cluster.kubectl("delete", "lease", "premoe-operator", "-n", site.namespace)
    with running_operator(site) as child:
        site.create("prunedmodels", pruned_model("one"))
        wait(lambda: "does not exist" in child.stderr(), 30, child.stderr)
        assert "status" not in site.model("one")
