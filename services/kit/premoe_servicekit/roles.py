"""Who may call what under mutual TLS: the roles that certificates carry, and the callers of every RPC.

A certificate names its holder in a URI among its alternative names, ``premoe://RELEASE/ROLE``, or
``premoe://RELEASE/ROLE/TENANT`` where packs are kept apart. A URI without a tenant beside that one is for services of
before there were tenants. Health is open to everybody with a certificate of the authority.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from premoe_runtime.formats.errors import Forbidden
from premoe_runtime.formats.ids import is_tenant


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


_SCHEME = "premoe://"
_ROAMING = frozenset({Role.OPERATOR, Role.EXPERT_STORE, Role.ADMIN})
"""Roles that may name packs of any tenant, where their certificate names none."""


def identity(release: str, role: Role, tenant: str = "") -> str:
    """The URI of a role in a release, of a tenant or of none."""
    return f"{_SCHEME}{release}/{role}/{tenant}" if tenant else f"{_SCHEME}{release}/{role}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose packs somebody sees: of ``tenant``, and shared ones; with ``anywhere`` those of any tenant by its name."""

    tenant: str = ""
    anywhere: bool = False


SHARED = Caller()
"""Everybody, where no roles are checked."""

_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("premoe_caller", default=SHARED)


def caller() -> Caller:
    """Who makes the RPC in hand."""
    return _caller.get()


@dataclass(frozen=True, slots=True)
class Admission:
    """Callers of one release, and guests of others, by what their certificates say."""

    release: str
    guests: tuple[str, ...] = ()

    def check(self, method: str, authentication: Mapping[str, Iterable[bytes]]) -> Caller:
        """Who calls. Raises Forbidden (CALLER_REFUSED).

        ``method``: ``/SERVICE/RPC``; ``authentication``: as gRPC gives it.
        """
        service, _, rpc = method.removeprefix("/").partition("/")
        roles = CALLERS.get(service, {}).get(rpc, frozenset())
        presented = [uri.decode(errors="replace") for uri in authentication.get("peer_uri", ())]
        return self.admit(presented, roles, f"call {rpc} of {service}; it")

    def enter(self, method: str, authentication: Mapping[str, Iterable[bytes]]) -> None:
        """``check``, and from now on ``caller`` tells who it is, as long as the RPC's own context lasts."""
        _caller.set(self.check(method, authentication))

    def admit(self, presented: Iterable[str], roles: frozenset[Role], deed: str) -> Caller:
        """Who presents these URIs, in one of ``roles`` or as an admin. Raises Forbidden (CALLER_REFUSED).

        ``deed`` ends "… may not DEED takes ROLES".
        """
        presented = tuple(presented)
        admitted = self._admitted(roles)
        found = {(role, tenant) for uri in presented for role, tenant in [_taken_apart(uri, admitted)] if role}
        tenants = {tenant for _, tenant in found if tenant}
        if found and len(tenants) < 2:
            tenant = next(iter(tenants), "")
            roams = not tenant and any(role in _ROAMING for role, _ in found)
            return Caller(tenant, anywhere=roams)
        named = ", ".join(uri for uri in presented if uri.startswith(_SCHEME))
        if tenants:
            raise Forbidden(f"{named} names several tenants; give it one certificate each", reason="CALLER_REFUSED")
        who = named or "a caller without a role (no URI premoe://RELEASE/ROLE in its certificate)"
        wanted = ", ".join(sorted({*roles, Role.ADMIN}))
        raise Forbidden(f"{who} may not {deed} takes {wanted} of {self.release}", reason="CALLER_REFUSED")

    def _admitted(self, roles: frozenset[Role]) -> dict[str, Role]:
        """The URIs, without a tenant, of who is let in."""
        own = {identity(self.release, role): role for role in {*roles, Role.ADMIN}}
        return own | {identity(guest, role): role for guest in self.guests for role in roles & _GUESTS}


def _taken_apart(uri: str, admitted: Mapping[str, Role]) -> tuple[Role | None, str]:
    """The role and the tenant of a URI; no role for one that is not admitted."""
    if uri in admitted:
        return admitted[uri], ""
    holder, _, tenant = uri.rpartition("/")
    return (admitted.get(holder), tenant) if is_tenant(tenant) else (None, "")
