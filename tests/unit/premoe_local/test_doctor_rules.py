"""What `premoe doctor` makes of facts: a fault of each kind, and its absence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_local.doctor.facts.clock import Clock
from premoe_local.doctor.facts.control_group import Group
from premoe_local.doctor.facts.disk import Disk
from premoe_local.doctor.facts.expert_store import Peer
from premoe_local.doctor.facts.machine import Machine, Room
from premoe_local.doctor.facts.redis_server import RedisServer
from premoe_local.doctor.facts.store import Bucket
from premoe_local.doctor.facts.tls import Certificate
from premoe_local.doctor.finding import Finding, State, worst
from premoe_local.doctor.rules import clock, disk, expert_store, limits, memory, network, redis_server, store, tls
from support.machines import GIB, GOOD

DAY = 86_400.0
REDIS = RedisServer(
    "host:6379",
    version="7.0.15",
    role="master",
    allocator="jemalloc-5.2.1",
    used=GIB,
    limit=8 * GIB,
    policy="allkeys-lfu",
    evicted=0,
    save="",
    append_only=False,
    reply_limit=0,
    latency=2e-4,
    clock=Clock(0.0, 0.001),
)
BUCKET = Bucket("s3://models", "", 2, 0.03, 8 << 20, 0.1, 16 << 20, Clock(0.2, 0.5))


def judged(machine: Machine, blob_bytes: int | None = None) -> list[Finding]:
    return [*network.judge(machine), *memory.judge(machine, blob_bytes), *limits.judge(machine)]


def check_told(findings: list[Finding]) -> None:
    """What is not well says why and what to do, in one line each; what is not a failure says where a figure is from."""
    for finding in findings:
        text = (finding.check, finding.found, finding.why, finding.change, finding.source)
        assert finding.state in get_args(State)
        assert finding.found
        assert not any("\n" in part for part in text)
        if finding.state in ("warning", "error"):
            assert finding.why
            assert finding.change
            assert finding.source or "no factor" in finding.why


def only(findings: list[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    check_told(findings)
    return found


def test_a_good_machine_has_nothing_to_tell() -> None:
    assert {finding.state for finding in judged(GOOD)} == {"ok"}
    assert worst(judged(GOOD)) == "ok"


MACHINE_FAULTS: list[tuple[dict[str, Any], str, State, str]] = [
    ({"congestion": "bbr"}, "congestion control", "warning", "3.0 GB/s over loopback with bbr against 9.8 GB/s"),
    ({"congestion": "bbr2", "congestion_choices": ("reno", "bbr2")}, "congestion control", "warning", "reno"),
    ({"congestion": ""}, "congestion control", "skipped", ""),
    ({"somaxconn": 128}, "connections that wait", "warning", "4096"),
    ({"somaxconn": None}, "connections that wait", "skipped", ""),
    ({"group": Group(2, 32 * GIB, 29 * GIB)}, "memory limit", "warning", "quarter of what is free"),
    ({"group": Group(2, 32 * GIB, 31 * GIB)}, "memory limit", "error", "killed by the kernel"),
    ({"group": Group(2, 60 * GIB, GIB)}, "memory limit", "warning", "before the limit is reached"),
    ({"group": Group(1, 32 * GIB, GIB)}, "memory limit", "warning", "hostMemory"),
    ({"group": Group(), "memory": Room(64 * GIB, GIB)}, "memory limit", "error", "killed"),
    ({"group": Group(), "memory": Room(0, 0)}, "memory limit", "skipped", ""),
    ({"shared": Room(64 << 20, 64 << 20)}, "shared memory", "warning", "9.5 GB/s against 1.7"),
    ({"shared": None}, "shared memory", "warning", "--shm-size"),
    ({"huge_shared": "never"}, "huge pages of shared memory", "warning", "1.4 GB/s in place of"),
    ({"huge_shared": "deny"}, "huge pages of shared memory", "warning", "advise"),
    ({"huge_shared": ""}, "huge pages of shared memory", "skipped", ""),
    ({"locked": 8 << 20, "has_rdma": True}, "locked memory", "warning", "LimitMEMLOCK"),
    ({"files": 1024}, "open files", "warning", "ulimit -n"),
    ({"files": 100}, "open files", "error", "ulimit -n"),
    ({"environment": {"OMP_NUM_THREADS": "8"}}, "threads of torch", "warning", "OMP_NUM_THREADS=4"),
    ({"environment": {}}, "threads of torch", "warning", "1.15 to 1.5 times"),
]


@pytest.mark.parametrize(("changes", "check", "state", "told"), MACHINE_FAULTS)
def test_each_fault_of_a_machine(changes: dict[str, Any], check: str, state: State, told: str) -> None:
    found = only(judged(replace(GOOD, **changes)), check)
    assert (found.state, told in f"{found.why} {found.change}") == (state, True), found


@pytest.mark.parametrize(
    "changes",
    [
        {"locked": 8 << 20},
        {"locked": None, "has_rdma": True},
        {"files": None},
        {"group": Group(2, None, None, 4.0)},
        {"group": Group(2, 32 * GIB, GIB, 0.5), "environment": {**GOOD.environment, "OMP_NUM_THREADS": "1"}},
        {"libc": ""},
    ],
)
def test_what_is_no_fault(changes: dict[str, Any]) -> None:
    assert {finding.state for finding in judged(replace(GOOD, **changes))} == {"ok"}


@pytest.mark.parametrize(
    ("environment", "blob_bytes", "state"),
    [
        ({}, None, "warning"),
        ({}, 44 << 20, "warning"),
        ({}, 16 << 20, "ok"),
        ({"MALLOC_MMAP_THRESHOLD_": "4G", "MALLOC_TRIM_THRESHOLD_": "8G"}, None, "error"),
        ({"MALLOC_MMAP_THRESHOLD_": "1073741824"}, None, "warning"),
        ({"MALLOC_MMAP_THRESHOLD_": "4", "MALLOC_TRIM_THRESHOLD_": "8"}, None, "warning"),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=99999999:glibc.malloc.trim_threshold=99999999"}, None, "ok"),
        ({"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}, None, "ok"),
    ],
)
def test_thresholds_of_glibc(environment: dict[str, str], blob_bytes: int | None, state: State) -> None:
    found = only([memory.malloc(replace(GOOD, environment=environment), blob_bytes)], "malloc")
    assert found.state == state, found


REDIS_FAULTS: list[tuple[dict[str, Any], str, State, str]] = [
    ({"fault": "Connection refused"}, "Redis", "error", "comes from object storage"),
    ({"role": "slave"}, "Redis", "error", "refuses writes"),
    ({"limit": 0}, "Redis maxmemory", "warning", "CONFIG SET maxmemory"),
    ({"limit": None}, "Redis maxmemory", "skipped", ""),
    ({"policy": "noeviction"}, "Redis maxmemory-policy", "error", "allkeys-lfu"),
    ({"policy": "volatile-lru"}, "Redis maxmemory-policy", "error", "no expiry"),
    ({"policy": "noeviction", "limit": 0}, "Redis maxmemory-policy", "warning", "allkeys-lfu"),
    ({"policy": "allkeys-random"}, "Redis maxmemory-policy", "warning", "without looking"),
    ({"policy": None}, "Redis maxmemory-policy", "skipped", ""),
    ({"save": "3600 1"}, "Redis persistence", "warning", 'CONFIG SET save ""'),
    ({"append_only": True}, "Redis persistence", "warning", "doubles"),
    ({"save": None, "append_only": None}, "Redis persistence", "skipped", ""),
    ({"reply_limit": 1 << 20}, "Redis output buffers", "error", "cuts off"),
    ({"reply_limit": None}, "Redis output buffers", "skipped", ""),
    ({"latency": 0.02}, "Redis latency", "warning", "0.2 GB/s at most"),
    ({"clock": Clock(60.0, 0.1)}, "clock of Redis", "warning", "chronyc"),
]


def test_a_good_redis_has_nothing_to_tell_but_what_cannot_be_seen() -> None:
    findings = redis_server.judge(REDIS)
    assert {finding.check for finding in findings if finding.state != "ok"} == {"Redis MALLOC_CONF"}
    told = only(findings, "Redis MALLOC_CONF")
    assert told.state == "skipped"
    assert "oversize_threshold:0" in told.change


@pytest.mark.parametrize(("changes", "check", "state", "told"), REDIS_FAULTS)
def test_each_fault_of_redis(changes: dict[str, Any], check: str, state: State, told: str) -> None:
    found = only(redis_server.judge(replace(REDIS, **changes)), check)
    assert (found.state, told in f"{found.why} {found.change}") == (state, True), found


@pytest.mark.parametrize(
    ("changes", "check", "state"),
    [
        ({}, "object store", "ok"),
        ({"fault": "s3://models: access refused"}, "object store", "error"),
        ({"first_byte": 0.9}, "object store, first byte", "warning"),
        ({"first_byte": None, "range_time": None, "packs": 0}, "object store, first byte", "skipped"),
        ({"range_time": 2.0}, "object store, one range", "warning"),
        ({"range_time": 2.0, "range_bytes": 4096}, "object store, one range", "ok"),
        ({"clock": Clock(-3600.0, 0.5)}, "clock of object store", "error"),
        ({"clock": None}, "clock of object store", "skipped"),
    ],
)
def test_each_fault_of_an_object_store(changes: dict[str, Any], check: str, state: State) -> None:
    assert only(store.judge(replace(BUCKET, **changes)), check).state == state


def test_a_folder_has_no_clock() -> None:
    findings = store.judge(replace(BUCKET, url="file:///models", clock=None, is_remote=False))
    assert {finding.state for finding in findings} == {"ok"}


@pytest.mark.parametrize(
    ("peer", "state", "told"),
    [
        (Peer("host:1", serving=True, latency=0.001), "ok", ""),
        (Peer("host:1", serving=True, latency=0.2), "warning", "0.45 ms"),
        (Peer("host:1", fault="no answer"), "error", "TLS files"),
        (Peer("host:1", is_ours=False), "error", "50051"),
        (Peer("host:1", serving=False), "error", "draining"),
    ],
)
def test_each_fault_of_an_expert_store(peer: Peer, state: State, told: str) -> None:
    found = only([expert_store.judge(peer)], "expert store")
    assert (found.state, told in f"{found.why} {found.change}") == (state, True)


@pytest.mark.parametrize(
    ("facts", "state", "told"),
    [
        (Disk("/c", GIB, "", 64 << 20, 1e9, 2e9), "ok", "2.00 GB/s read past the page cache"),
        (Disk("/c", GIB, "", 64 << 20, 1e9, 0.1e9), "warning", "0.10 GB/s"),
        (Disk("/c", GIB, "", 64 << 20, 1e9, 9e9, direct=False), "warning", "through the page cache"),
        (Disk("/c", GIB, "", 64 << 20, 1e9, 9e9, direct=False, in_memory=True), "ok", "counts in the limit"),
        (Disk("/c", 1 << 20, "1.0 MiB are free in /c"), "error", "1.0 MiB are free"),
    ],
)
def test_each_fault_of_a_disk(facts: Disk, state: State, told: str) -> None:
    found = only([disk.judge(facts)], "disk")
    assert (found.state, told in found.found) == (state, True), found


@pytest.mark.parametrize(
    ("certificate", "state", "told"),
    [
        (Certificate("tls.crt", ends=90 * DAY, authority_ends=900 * DAY), "ok", "tls.crt ends in 90.0 days"),
        (Certificate("tls.crt", ends=3 * DAY, authority_ends=900 * DAY), "warning", "tls.crt ends in 3.0 days"),
        (Certificate("tls.crt", ends=90 * DAY, authority_ends=2 * DAY), "warning", "its authority ends in 2.0 days"),
        (Certificate("tls.crt"), "ok", "not said"),
        (Certificate("tls.crt", fault="key does not belong"), "error", "key does not belong"),
    ],
)
def test_each_fault_of_a_certificate(certificate: Certificate, state: State, told: str) -> None:
    found = only([tls.judge(certificate, now=0.0)], "TLS files")
    assert (found.state, told in found.found) == (state, True), found


@given(st.floats(-1e6, 1e6), st.floats(0, 1e3), st.floats(0, 10))
def test_a_clock_is_wrong_only_where_the_time_that_asking_took_cannot_explain_it(
    ahead: float, took: float, resolution: float
) -> None:
    before, after = 1e9, 1e9 + took
    for told in (before + ahead, after + ahead):
        found = clock.judge("Redis", Clock.read(before, told, after, resolution))
        check_told([found])
        if ahead == 0:
            assert found.state == "ok"
        if abs(ahead) > clock.LEASE_S + took + resolution + 1:
            assert found.state == "error"


MACHINES = st.builds(
    Machine,
    congestion=st.sampled_from(["", "bbr", "cubic"]),
    congestion_choices=st.sampled_from([(), ("reno",), ("cubic", "bbr")]),
    somaxconn=st.none() | st.integers(0, 1 << 20),
    memory=st.builds(Room, st.integers(0, 1 << 44), st.integers(0, 1 << 44)),
    group=st.builds(
        Group,
        st.integers(0, 2),
        st.none() | st.integers(0, 1 << 44),
        st.none() | st.integers(0, 1 << 44),
        st.none() | st.floats(0.01, 512),
    ),
    cores=st.integers(1, 512),
    shared=st.none() | st.builds(Room, st.integers(0, 1 << 44), st.integers(0, 1 << 44)),
    huge_shared=st.sampled_from(["", "never", "always", "advise", "odd"]),
    locked=st.none() | st.integers(0, 1 << 44),
    files=st.none() | st.integers(0, 1 << 20),
    has_rdma=st.booleans(),
    libc=st.sampled_from(["", "glibc"]),
    environment=st.dictionaries(
        st.sampled_from(
            ["GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"]
        ),
        st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=40),
    ),
)


@given(MACHINES, st.none() | st.integers(1, 1 << 30))
def test_whatever_a_machine_says_is_judged(machine: Machine, blob_bytes: int | None) -> None:
    findings = judged(machine, blob_bytes)
    check_told(findings)
    assert len({finding.check for finding in findings}) == len(findings)
