"""The replicas of this store that answer now, and which of them a blob belongs to (rendezvous hashing)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from premoe_dataplane import rendezvous
from premoe_servicekit.addresses import join, look_up

from premoe_runtime.formats.errors import InvalidInput

REFRESH_S = 3.0
CONNECT_S = 1.0

log = logging.getLogger(__name__)

Answers = Callable[[str], Awaitable[bool]]


class Peers:
    """Live replicas by the addresses (host:port) of their byte servers; ``own`` is ours and always lives.

    ``names``: addresses, or a name in DNS with a port, behind which there are several. Raises InvalidInput for others.
    """

    def __init__(self, names: Sequence[str], own: str, *, scheme: str = "http", answers: Answers | None = None) -> None:
        self._names = [_taken_apart(name) for name in names]
        self._own, self._scheme = own, scheme
        self._answers = answers or _answers
        self._live: tuple[str, ...] = (own,)
        self._homes: dict[str, str | None] = {}

    @property
    def live(self) -> tuple[str, ...]:
        """Ascending."""
        return self._live

    def home(self, digest: str) -> str | None:
        """``scheme://host:port`` of the replica that a blob belongs to; None: it is ours."""
        if len(self._live) == 1:
            return None
        if digest not in self._homes:
            if len(self._homes) >= _MOST_HOMES:
                self._homes.clear()
            home = rendezvous.home(digest, self._live)
            self._homes[digest] = None if home == self._own else f"{self._scheme}://{home}"
        return self._homes[digest]

    async def follow(self) -> None:
        """Look again and again, until cancelled. A name that DNS does not answer keeps what it was."""
        known: dict[tuple[str, int], list[str]] = {}
        while self._names:
            await self.refresh(known)
            await asyncio.sleep(REFRESH_S)

    async def refresh(self, known: dict[tuple[str, int], list[str]]) -> None:
        """Look once. ``known``: what each name was at the last look."""
        for host, port in self._names:
            try:
                known[host, port] = [join(address, port) for address in await look_up(host, port)]
            except OSError as error:
                log.debug("%s: %s", host, error)
        found = sorted({address for addresses in known.values() for address in addresses} - {self._own})
        answers = await asyncio.gather(*map(self._answers, found))
        live = tuple(sorted([self._own, *(one for one, lives in zip(found, answers, strict=True) if lives)]))
        if live != self._live:
            log.info("replicas that answer: %s", ", ".join(live))
            self._live = live
            self._homes.clear()


_MOST_HOMES = 1 << 17


async def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


def _taken_apart(name: str) -> tuple[str, int]:
    host, _, port = name.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidInput(f"--peers: {name!r} is no HOST:PORT", reason="SETTING_INVALID")
    return host.strip("[]"), int(port)
