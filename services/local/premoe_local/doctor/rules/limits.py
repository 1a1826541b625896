"""What this process may have open, and how many threads it starts."""

from __future__ import annotations

from premoe_local.doctor.facts.machine import Machine
from premoe_local.doctor.finding import Finding, State, ok

LEAST_FILES = 2048
"""A gateway process takes 1,000 connections and 100 more, and needs descriptors of its own."""


def judge(machine: Machine) -> list[Finding]:
    return [_files(machine), _threads(machine)]


def _files(machine: Machine) -> Finding:
    check, limit = "open files", machine.files
    if limit is None or limit >= LEAST_FILES:
        return ok(check, "no limit" if limit is None else f"{limit} at most")
    state: State = "error" if limit < 256 else "warning"
    return Finding(
        check,
        state,
        f"{limit} at most",
        "a gateway takes 1,000 connections and closes new ones where descriptors run out; no factor: it is a failure",
        "ulimit -n 65536, LimitNOFILE= of the service, or the container's ulimits",
        "docs/operate.md, the gateway's HTTP",
    )


def _threads(machine: Machine) -> Finding:
    check, given = "threads of torch", machine.environment.get("OMP_NUM_THREADS", "")
    cores = min(machine.cores, machine.group.cores or machine.cores)
    threads = int(given) if given.isdecimal() and int(given) else machine.cores
    found = f"{threads} on {cores:g} processors" + (f" (OMP_NUM_THREADS={given})" if given else "")
    if threads <= max(1, cores):
        return ok(check, found)
    return Finding(
        check,
        "warning",
        found,
        "threads that have no processor wait for each other at the end of every operation: 1.15 to 1.5 times the time "
        "for products of matrices with two threads on one processor",
        f"OMP_NUM_THREADS={max(1, int(cores))}, or --threads of the worker (spec.engine.threads); "
        "OMP_WAIT_POLICY=PASSIVE where others share the processors",
        "docs/doctor.md",
    )
