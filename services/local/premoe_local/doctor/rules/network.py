"""TCP as the kernel is set to do it."""

from __future__ import annotations

from premoe_local.doctor.facts.machine import Machine
from premoe_local.doctor.finding import Finding, ok, skipped

LEAST_BACKLOG = 1024


def judge(machine: Machine) -> list[Finding]:
    return [_congestion(machine), _backlog(machine)]


def _congestion(machine: Machine) -> Finding:
    check, name = "congestion control", machine.congestion
    if not name:
        return skipped(check, "the kernel does not say")
    if not name.startswith("bbr"):
        return ok(check, name)
    better = next((one for one in ("cubic", "reno") if one in machine.congestion_choices), "cubic")
    return Finding(
        check,
        "warning",
        name,
        "it paces, and so carries a half to a third between processes of one machine or cluster: 3.0 GB/s over "
        f"loopback with bbr against 9.8 GB/s with {better}, and twice the processor time",
        f"on the node: sysctl -w net.ipv4.tcp_congestion_control={better}, and a line in /etc/sysctl.d; pods take the "
        "node's. Over a long way to object storage bbr may well be the better one: keep it there with `ip route … "
        "congctl bbr`",
        "data-plane.md §1, finding 2",
    )


def _backlog(machine: Machine) -> Finding:
    check, found = "connections that wait", machine.somaxconn
    if found is None:
        return skipped(check, "the kernel does not say")
    if found >= LEAST_BACKLOG:
        return ok(check, f"somaxconn is {found}")
    return Finding(
        check,
        "warning",
        f"somaxconn is {found}",
        "when many workers start or move at once, connections beyond it are dropped and tried again after a second; "
        "no factor was measured",
        "sysctl -w net.core.somaxconn=4096 (the kernel's default since 5.4), of a pod in its securityContext.sysctls",
        "data-plane.md §11, item 6",
    )
