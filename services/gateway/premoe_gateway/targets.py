"""Where workers are: fixed addresses, and names that stand for all addresses that DNS knows for them.

A name's workers come and go with its records. One address family counts, that which the system prefers: with both,
each worker would appear twice.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from premoe_servicekit.addresses import join, look_up
from premoe_servicekit.followed import Followed

from premoe_runtime.formats.errors import InvalidInput

log = logging.getLogger(__name__)

DNS = "dns:///"
LOOKUP_TIMEOUT_S = 5.0

_GONE = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


@dataclass(frozen=True, slots=True)
class Target:
    """One entry of the settings."""

    host: str
    port: int
    is_name: bool = False
    """Whether it stands for all addresses of the name."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One worker: ``host:port``, and the name that its certificate carries (empty: the address)."""

    address: str
    server_name: str = ""


Lookup = Callable[[str, int], Awaitable[Sequence[str]]]


def parse_target(text: str) -> Target:
    """``host:port``, ``[v6]:port`` or ``dns:///name:port``. Raises ValueError."""
    is_name = text.startswith(DNS)
    host, _, port = text.removeprefix(DNS).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
        raise ValueError(f"{text!r} is no worker; write host:port or dns:///name:port")
    return Target(host, int(port), is_name)


class Published:
    """The targets that a file lists, one a line. While there is no file, there are none."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._file: Followed[tuple[Target, ...]] | None = None
        self._problem = ""

    def current(self) -> tuple[Target, ...]:
        """What it says now, or said before it could no longer be read."""
        if self._file is None and self._path.exists():
            try:
                self._file = Followed(
                    "workers file", (self._path,), self._read, reason="WORKERS_INVALID", clock=self._clock
                )
            except InvalidInput as error:
                if str(error) != self._problem:
                    log.warning("%s", error)
                self._problem = str(error)
        return () if self._file is None else self._file.current()

    def _read(self) -> tuple[Target, ...]:
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n")
            return tuple(parse_target(line.strip()) for line in lines if line.strip())
        except (OSError, ValueError) as error:
            raise InvalidInput(f"workers file {self._path}: {error}", reason="WORKERS_INVALID") from None


class Targets:
    """The endpoints behind the settings' entries and what is published; use from one event loop."""

    def __init__(
        self, entries: Sequence[str], published: Published | None = None, *, lookup: Lookup | None = None
    ) -> None:
        self._targets = [parse_target(entry) for entry in entries]
        self._published = published
        self._lookup = lookup or look_up
        self._known: dict[Target, tuple[Endpoint, ...]] = {}

    @property
    def are_fixed(self) -> bool:
        """Whether there are workers that the settings name one by one, and no others."""
        named = self._published is not None or any(target.is_name for target in self._targets)
        return bool(self._targets) and not named

    async def endpoints(self) -> tuple[Endpoint, ...]:
        """Every worker, each once. A name that cannot be looked up now keeps the addresses that it had."""
        targets = (*self._targets, *(self._published.current() if self._published is not None else ()))
        found = await asyncio.gather(*(self._of(target) for target in targets))
        by_address: dict[str, Endpoint] = {}
        for endpoint in (endpoint for group in found for endpoint in group):
            by_address.setdefault(endpoint.address, endpoint)
        return tuple(by_address.values())

    async def _of(self, target: Target) -> tuple[Endpoint, ...]:
        if not target.is_name:
            return (Endpoint(f"{target.host}:{target.port}"),)
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                addresses = await self._lookup(target.host, target.port)
        except (OSError, TimeoutError) as error:
            if not (isinstance(error, socket.gaierror) and error.errno in _GONE):
                log.warning("cannot look up %s, so its workers stay as they are: %s", target.host, error)
                return self._known.get(target, ())
            addresses = ()
        name = target.host.rstrip(".")
        endpoints = tuple(Endpoint(join(address, target.port), name) for address in sorted(addresses))
        if endpoints != self._known.get(target, ()):
            log.info("%s: %d workers", target.host, len(endpoints))
        self._known[target] = endpoints
        return endpoints
