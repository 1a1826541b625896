"""The byte server with all that belongs to it: who may read, its name for others, the other replicas."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from aiohttp import web
from premoe_dataplane.signing import BlobName, Signer
from premoe_dataplane.transports.http import HttpTransport
from premoe_servicekit.roles import Admission, Caller, Role
from premoe_servicekit.tls import Tls, admission_of

from premoe_expert_store.catalogue import Catalogue, Pack
from premoe_expert_store.filling.peer import HomeUrl
from premoe_expert_store.http.handler import PEER, Admit, BlobHandler
from premoe_expert_store.http.server import ByteServer, Listening
from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.peers import Peers
from premoe_expert_store.settings import ExpertStoreSettings
from premoe_expert_store.shelf import Shelf
from premoe_runtime.formats.errors import Forbidden, InvalidInput
from premoe_runtime.formats.ids import ExpertId

ADDRESS_S = 300
"""For which a replica may read a blob of another one by an address."""
READERS = frozenset({Role.WORKER, Role.EXPERT_STORE})
_EVERYWHERE = ("0.0.0.0", "::", "")


@dataclass(frozen=True, slots=True)
class ByteDoor:
    """``base``: of the URLs that Resolve names. ``address``: where the port is bound."""

    server: ByteServer
    peers: Peers
    base: str
    following: asyncio.Task[None]
    grace_s: float

    @property
    def address(self) -> str:
        return self.server.address

    async def stop(self, grace_s: float | None = None) -> None:
        """Readers of blobs get ``grace_s`` (the settings' by default) to end. Safe to call again."""
        self.following.cancel()
        await self.server.stop(self.grace_s if grace_s is None else grace_s)


async def open_door(
    settings: ExpertStoreSettings,
    tls: Tls | None,
    shelf: Shelf,
    catalogue: Catalogue,
    signer: Signer,
    metrics: StoreMetrics,
) -> ByteDoor | None:
    """A running byte server as the settings say; None where they name no port.

    Raises InvalidInput for settings that cannot be, and Unavailable (PORT_IN_USE).
    """
    if settings.http_port is None:
        if settings.peers or settings.advertise:
            raise InvalidInput("--peers and --advertise are about blobs over HTTP; give --http-port too")
        return None
    host = settings.http_host or settings.host
    if not settings.advertise and host in _EVERYWHERE:
        raise InvalidInput(
            f"blobs are served on every address ({host}); say by --advertise HOST:PORT under which others reach them",
            reason="SETTING_INVALID",
        )
    tls = None if settings.http_plain else tls

    async def pack(name: BlobName) -> Pack:
        return await catalogue.pack(name.model_id, Caller(name.tenant))

    admit = _admit(admission_of(settings, tls) if tls else None)
    listening = Listening(host, settings.http_port, settings.http_connections, settings.bytes_congestion_control)
    handler = BlobHandler(shelf, pack, signer, admit, metrics, settings.http_idle_s)
    server = ByteServer(handler, listening, tls=tls)
    await server.start()
    scheme = "https" if tls else "http"
    own = settings.advertise or server.address
    peers = Peers(settings.peers, own, scheme=scheme)
    if settings.peers:
        shelf.ask_homes(_homes(peers, signer), HttpTransport(tls))
    metrics.show_connections(lambda: server.connections)
    return ByteDoor(server, peers, f"{scheme}://{own}", asyncio.create_task(peers.follow()), settings.grace_s)


def _homes(peers: Peers, signer: Signer) -> HomeUrl:
    """Where another replica serves a blob to us."""

    def home(pack: Pack, expert: ExpertId) -> str | None:
        digest = pack.manifest.digest(expert)
        if (base := peers.home(digest)) is None:
            return None
        name = BlobName(digest, pack.manifest.model_id, expert, pack.tenant)
        return f"{base}{signer.path(name, int(time.time()) + ADDRESS_S)}&{PEER}=1"

    return home


def _admit(admission: Admission | None) -> Admit:
    """Who reads must be a worker or a store, and of the tenant whose blob it is: an address alone is not enough."""

    def admit(request: web.BaseRequest, name: BlobName) -> None:
        if admission is None:
            return
        certificate = request.get_extra_info("peercert") or {}
        uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
        caller = admission.admit(uris, READERS, "read blobs over HTTP; the port")
        if name.tenant and not caller.anywhere and caller.tenant != name.tenant:
            raise Forbidden("this address is of another tenant", reason="CALLER_REFUSED")

    return admit
