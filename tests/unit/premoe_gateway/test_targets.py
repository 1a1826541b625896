from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from premoe_gateway.settings import GatewaySettings
from premoe_gateway.targets import Endpoint, Published, Target, Targets, parse_target
from premoe_servicekit.addresses import look_up
from premoe_servicekit.followed import CHECK_EVERY_S
from premoe_servicekit.settings import load_settings
from support.keys import replace_file

from premoe_runtime.formats.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host:50051", Target("host", 50051)),
        ("[::1]:50051", Target("[::1]", 50051)),
        ("dns:///m-worker.ns.svc:50051", Target("m-worker.ns.svc", 50051, is_name=True)),
    ],
)
def test_targets_are_parsed(text: str, expected: Target) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["host", "host:", ":1", "host:0", "host:70000", "dns://host:1", "http://host:1", ""])
def test_what_is_no_target_is_one_line_of_the_settings(text: str) -> None:
    with pytest.raises(ValueError, match="is no worker; write host:port or dns:///name:port"):
        parse_target(text)
    if text:
        with pytest.raises(InvalidInput, match="--workers"):
            load_settings(GatewaySettings, "premoe-gateway", ["--workers", text], {})


def test_no_workers_at_all_is_no_error() -> None:
    settings = load_settings(GatewaySettings, "premoe-gateway", ["--workers", ""], {})
    assert settings.workers == ()
    assert not Targets(settings.workers).are_fixed


class Names:
    """Answers of a name server, by name."""

    def __init__(self, **records: Sequence[str] | OSError) -> None:
        self.records = records

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        found = self.records[host.split(".")[0]]
        if isinstance(found, OSError):
            raise found
        return found


async def test_names_stand_for_all_their_addresses_and_follow_them() -> None:
    names = Names(a=["10.0.0.2", "10.0.0.1"], b=["fd00::1"])
    targets = Targets(["dns:///a.svc.:1", "fixed:2", "dns:///b.svc:3", "fixed:2"], lookup=names)
    assert await targets.endpoints() == (
        Endpoint("10.0.0.1:1", "a.svc"),
        Endpoint("10.0.0.2:1", "a.svc"),
        Endpoint("fixed:2"),
        Endpoint("[fd00::1]:3", "b.svc"),
    )
    names.records["a"] = ["10.0.0.3"]
    assert (await targets.endpoints())[0] == Endpoint("10.0.0.3:1", "a.svc")


async def test_a_name_without_records_has_no_workers_but_a_deaf_name_server_changes_nothing() -> None:
    names = Names(a=["10.0.0.1"])
    targets = Targets(["dns:///a:1"], lookup=names)
    before = await targets.endpoints()
    for fault in (socket.gaierror(socket.EAI_AGAIN, "try again"), TimeoutError(), OSError("broken")):
        names.records["a"] = fault
        assert await targets.endpoints() == before
    names.records["a"] = socket.gaierror(socket.EAI_NONAME, "no such name")
    assert await targets.endpoints() == ()
    names.records["a"] = socket.gaierror(socket.EAI_AGAIN, "try again")
    assert await targets.endpoints() == ()


async def test_the_system_s_resolver_is_asked() -> None:
    assert await look_up("127.0.0.1", 1) == ["127.0.0.1"]
    assert await look_up("localhost", 1) in (["127.0.0.1"], ["::1"])


def lines(path: Path, *targets: str) -> None:
    replace_file(path, "".join(f"{target}\n" for target in targets).encode())


async def test_a_file_adds_workers_that_come_and_go_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, now = tmp_path / "workers", [0.0]
    names = Names(own=["10.0.0.1"], chat=["10.0.1.1"], code=["10.0.2.1"])
    targets = Targets(["dns:///own.a:1"], Published(path, clock=lambda: now[0]), lookup=names)

    async def addresses() -> list[str]:
        now[0] += CHECK_EVERY_S
        return [endpoint.address for endpoint in await targets.endpoints()]

    assert not targets.are_fixed
    assert await addresses() == ["10.0.0.1:1"]
    lines(path, "dns:///chat.b:1", "", "dns:///code.c:1")
    assert await addresses() == ["10.0.0.1:1", "10.0.1.1:1", "10.0.2.1:1"]
    lines(path, "dns:///code.c:1")
    assert await addresses() == ["10.0.0.1:1", "10.0.2.1:1"]
    for broken in (b"chat.b\n", b"\xff\xfe", None):
        caplog.clear()
        if broken is None:
            path.unlink()
        else:
            replace_file(path, broken)
        for _ in range(3):
            assert await addresses() == ["10.0.0.1:1", "10.0.2.1:1"]
        assert len(caplog.records) == 1
    lines(path)
    assert await addresses() == ["10.0.0.1:1"]


async def test_a_file_that_is_broken_from_the_first_is_said_once_and_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "workers"
    path.write_text("nonsense\n")
    targets = Targets([], Published(path), lookup=Names(chat=["10.0.1.1"]))
    for _ in range(3):
        assert await targets.endpoints() == ()
    assert len(caplog.records) == 1
    lines(path, "dns:///chat.b:1")
    assert await targets.endpoints() == (Endpoint("10.0.1.1:1", "chat.b"),)


async def test_a_worker_that_two_entries_lead_to_is_one() -> None:
    targets = Targets(["dns:///a:1", "dns:///b:1"], lookup=Names(a=["10.0.0.1"], b=["10.0.0.1", "10.0.0.2"]))
    assert await targets.endpoints() == (Endpoint("10.0.0.1:1", "a"), Endpoint("10.0.0.2:1", "b"))
