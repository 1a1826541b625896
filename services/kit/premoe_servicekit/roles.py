"""Who may call what under mutual TLS: the roles that certificates carry, and the callers of every RPC.

A certificate names its holder in a URI among its alternative names, ``premoe://RELEASE/ROLE``. Health is open to
everybody with a certificate of the authority.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from premoe_runtime.formats.errors import Forbidden


class Role(StrEnum):
    """The last part of the URI."""

    GATEWAY = "gateway"
    WORKER = "worker"
    OPERATOR = "operator"
    RETRIEVAL = "retrieval"
    EXPERT_STORE = "expert-store"
    TEST = "test"
    """The pods of ``helm test``."""
    CLIENT = "client"
    """Programs that call workers past the gateway."""
    ADMIN = "admin"
    """People: every RPC of their own release."""


_GUESTS = frozenset({Role.WORKER, Role.OPERATOR})
"""Roles in which another release may come; its people stay at home."""

CALLERS: Mapping[str, Mapping[str, frozenset[Role]]] = {
    "premoe.experts.v1.ExpertStoreService": {
        "GetManifest": frozenset({Role.WORKER, Role.OPERATOR, Role.TEST}),
        "Resolve": frozenset({Role.WORKER}),
        "Prefetch": frozenset({Role.WORKER}),
        "Renew": frozenset({Role.WORKER}),
        "Release": frozenset({Role.WORKER}),
        "WatchStore": frozenset({Role.WORKER}),
        "Fetch": frozenset({Role.WORKER}),
        "FetchFile": frozenset({Role.WORKER}),
    },
    "premoe.patterns.v1.PatternService": {
        "Retrieve": frozenset({Role.GATEWAY, Role.WORKER, Role.TEST}),
        "GetPattern": frozenset({Role.GATEWAY, Role.WORKER}),
        "ListPatterns": frozenset({Role.GATEWAY, Role.WORKER}),
        "PublishSet": frozenset(),
        "SetLive": frozenset(),
        "DeleteSet": frozenset(),
        "ListSignatures": frozenset(),
    },
    "premoe.worker.v1.WorkerService": {
        "Generate": frozenset({Role.GATEWAY, Role.CLIENT, Role.TEST}),
        "Probe": frozenset({Role.GATEWAY, Role.CLIENT, Role.TEST}),
        "Tokenize": frozenset({Role.GATEWAY, Role.CLIENT}),
        "Detokenize": frozenset({Role.GATEWAY, Role.CLIENT}),
        "GetResidency": frozenset({Role.GATEWAY, Role.OPERATOR, Role.CLIENT, Role.TEST}),
    },
    "premoe.worker.v1.WorkerAdminService": {
        "LoadPattern": frozenset({Role.OPERATOR}),
        "UnloadPattern": frozenset({Role.OPERATOR}),
        "Drain": frozenset({Role.OPERATOR}),
        "CheckIntegrity": frozenset(),
    },
}
"""Roles that may call each RPC, beside ``Role.ADMIN``."""


def identity(release: str, role: Role) -> str:
    """The URI of a role in a release."""
    return f"premoe://{release}/{role}"


@dataclass(frozen=True, slots=True)
class Admission:
    """Callers of one release, and guests of others, by what their certificates say."""

    release: str
    guests: tuple[str, ...] = ()

    def check(self, method: str, authentication: Mapping[str, Iterable[bytes]]) -> None:
        """Raises Forbidden (CALLER_REFUSED). ``method``: ``/SERVICE/RPC``; ``authentication``: as gRPC gives it."""
        service, _, rpc = method.removeprefix("/").partition("/")
        roles = CALLERS.get(service, {}).get(rpc, frozenset())
        presented = [uri.decode(errors="replace") for uri in authentication.get("peer_uri", ())]
        if not self._admitted(roles).isdisjoint(presented):
            return
        named = ", ".join(uri for uri in presented if uri.startswith("premoe://"))
        who = named or "a caller without a role (no URI premoe://RELEASE/ROLE in its certificate)"
        wanted = ", ".join(sorted({*roles, Role.ADMIN}))
        raise Forbidden(
            f"{who} may not call {rpc} of {service}; it takes {wanted} of {self.release}", reason="CALLER_REFUSED"
        )

    def _admitted(self, roles: frozenset[Role]) -> set[str]:
        own = {identity(self.release, role) for role in {*roles, Role.ADMIN}}
        return own | {identity(guest, role) for guest in self.guests for role in roles & _GUESTS}
