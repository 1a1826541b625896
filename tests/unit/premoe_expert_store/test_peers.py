"""Which replica a blob belongs to, and which replicas there are."""

from __future__ import annotations

import asyncio

import pytest
from premoe_expert_store import peers
from premoe_expert_store.peers import Peers

from premoe_runtime.formats.errors import InvalidInput


class Network:
    """Names in DNS and who answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **names: list[str]) -> None:
        self.names = names
        self.silent: set[str] = set()
        monkeypatch.setattr(peers, "look_up", self._look_up)

    async def _look_up(self, host: str, port: int) -> list[str]:
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host]

    async def answers(self, address: str) -> bool:
        return address not in self.silent


async def test_replicas_behind_a_name_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, stores=["10.0.0.1", "10.0.0.2"])
    found = Peers(["stores:80"], "10.0.0.1:80", scheme="https", answers=network.answers)
    digests = [f"{number:064x}" for number in range(50)]
    assert {found.home(digest) for digest in digests} == {None}, "nobody is known yet"
    known: dict[tuple[str, int], list[str]] = {}
    await found.refresh(known)
    assert found.live == ("10.0.0.1:80", "10.0.0.2:80")
    assert {found.home(digest) for digest in digests} == {None, "https://10.0.0.2:80"}
    network.names["stores"].append("fd00::3")
    await found.refresh(known)
    assert "https://[fd00::3]:80" in {found.home(digest) for digest in digests}
    del network.names["stores"]
    await found.refresh(known)
    assert len(found.live) == 3, "a name server that is down takes nobody away"
    network.silent = {"10.0.0.2:80", "[fd00::3]:80"}
    await found.refresh(known)
    assert {found.home(digest) for digest in digests} == {None}


async def test_a_list_of_addresses_is_tried_out() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        found = Peers([f"127.0.0.1:{port}", "127.0.0.1:1"], "127.0.0.9:80")
        await found.refresh({})
    assert found.live == (f"127.0.0.1:{port}", "127.0.0.9:80")


async def test_following_without_names_ends_at_once() -> None:
    await Peers([], "a:1").follow()


@pytest.mark.parametrize("name", ["stores", "stores:", ":80", "stores:x", "stores:0", "stores:70000"])
def test_what_is_no_address_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"^--peers: .* is no HOST:PORT$"):
        Peers([name], "a:1")
