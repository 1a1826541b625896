"""Clocks of others beside ours."""

from __future__ import annotations

from premoe_local.doctor.facts.clock import Clock
from premoe_local.doctor.finding import Finding, ok

NOTABLE_S = 2.0
LEASE_S = 300.0
"""For so long addresses that a store signs are good, unless it is told otherwise."""


def judge(whose: str, clock: Clock) -> Finding:
    check = f"clock of {whose}"
    found = f"{abs(clock.ahead):.1f} s {'ahead' if clock.ahead >= 0 else 'behind'}, ± {clock.uncertainty:.1f} s"
    if clock.least <= NOTABLE_S:
        return ok(check, found)
    return Finding(
        check,
        "error" if clock.least > LEASE_S else "warning",
        found,
        f"what is signed until a time ends early or late by as much: leases and addresses hold for {LEASE_S:.0f} s, S3 "
        "refuses requests that are 900 s off; no factor: it is a failure",
        "let one time service set all clocks (chronyc tracking, timedatectl)",
        "premoe_expert_store/settings.py, lease_s",
    )
