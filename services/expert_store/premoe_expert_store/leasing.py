"""Leases as callers know them: good for the tenant that got them, and for nobody else."""

from __future__ import annotations

import hmac
import secrets

from premoe_servicekit.roles import Caller

from premoe_runtime.formats.errors import NotFound

_MARK_CHARS = 16


class LeaseNames:
    """Marks a lease's id with whose it is, so that nothing has to be kept. Marks are of one process, as leases are."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def told(self, lease_id: str, caller: Caller) -> str:
        """The id that the caller gets."""
        return f"{lease_id}.{self._mark(lease_id, caller)}"

    def own(self, told: str, caller: Caller) -> str | None:
        """The lease's id; None for what was not told to this caller's tenant."""
        lease_id, _, mark = told.rpartition(".")
        return lease_id if hmac.compare_digest(mark.encode(), self._mark(lease_id, caller).encode()) else None

    def kept(self, told: str, caller: Caller) -> str:
        """As ``own``. Raises NotFound (LEASE_ENDED)."""
        lease_id = self.own(told, caller)
        if lease_id is None:
            raise NotFound(f"lease {told[:80]!r} has ended; resolve again", reason="LEASE_ENDED")
        return lease_id

    def _mark(self, lease_id: str, caller: Caller) -> str:
        return hmac.digest(self._key, f"{caller.tenant}\n{lease_id}".encode(), "sha256").hex()[:_MARK_CHARS]
