"""The file of API keys and the ring made of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from premoe_gateway.access.keyring import Keyring
from premoe_gateway.access.keys import MOST_KEYS, KeyFile, digest, new_key, read_keys, written
from premoe_servicekit.followed import CHECK_EVERY_S
from support.keys import replace_file, write_keys

from premoe_runtime.formats.errors import InvalidInput

GOOD = {"name": "alice", "sha256": "a" * 64}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def header(key: str) -> bytes:
    return b"Bearer " + key.encode()


def check_refused(ring: Keyring, authorization: bytes | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        ring.holder(authorization)
    assert caught.value.reason == "INVALID_API_KEY"


def test_a_key_is_known_by_its_digest_alone(tmp_path: Path) -> None:
    made = write_keys(tmp_path / "keys.json", {"alice": {"requests_per_minute": 5}, "bob": {}})
    text = (tmp_path / "keys.json").read_text()
    assert not any(key in text for key in made.values())
    ring = Keyring(tmp_path / "keys.json")
    assert {name: ring.holder(header(key)).name for name, key in made.items()} == {"alice": "alice", "bob": "bob"}
    assert ring.holder(header(made["alice"])).requests_per_minute == 5
    assert ring.holder(b"bearer   " + made["bob"].encode() + b" ").name == "bob"


@pytest.mark.parametrize(
    "shown",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic YTpi",
        b"KEY",
        b"Bearer KEYx",
        b"Bearer \xff\xfe",
        b"Bearer " + b"a" * 64,
    ],
)
def test_what_shows_no_key_of_ours_is_refused(tmp_path: Path, shown: bytes | None) -> None:
    made = write_keys(tmp_path / "keys.json", {"alice": {}})
    ring = Keyring(tmp_path / "keys.json")
    check_refused(ring, shown and shown.replace(b"KEY", made["alice"].encode()))


def test_a_file_without_keys_lets_nobody_in(tmp_path: Path) -> None:
    write_keys(tmp_path / "keys.json", {})
    check_refused(Keyring(tmp_path / "keys.json"), header(new_key()))


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "Invalid JSON"),
    "a list": ([], "valid dictionary|object"),
    "unknown field": ({"keys": [], "more": 1}, "more: Extra inputs"),
    "a key in place of its digest": ({"keys": [{"name": "a", "sha256": "premoe-secret"}]}, r"keys\.0\.sha256: String"),
    "no name": ({"keys": [{**GOOD, "name": ""}]}, r"keys\.0\.name"),
    "a name with a line end": ({"keys": [{**GOOD, "name": "a\n"}]}, r"keys\.0\.name"),
    "no requests": ({"keys": [{**GOOD, "requests_per_minute": 0}]}, r"keys\.0\.requests_per_minute"),
    "a limit as text": ({"keys": [{**GOOD, "concurrent": "4"}]}, r"keys\.0\.concurrent"),
    "a name twice": ({"keys": [GOOD, {**GOOD, "sha256": "b" * 64}]}, "2 keys have the same name alice"),
    "a key twice": ({"keys": [GOOD, {**GOOD, "name": "bob"}]}, "2 keys have the same sha256$"),
    "too many": ({"keys": [{**GOOD, "name": f"n{number}"} for number in range(MOST_KEYS + 1)]}, "at most 1000"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_files_are_one_line_without_what_stands_in_them(tmp_path: Path, case: tuple[Any, str]) -> None:
    document, message = case
    path = tmp_path / "keys.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(InvalidInput, match=message) as caught:
        read_keys(path)
    assert caught.value.reason == "KEYS_INVALID"
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_missing_or_endless_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        Keyring(tmp_path / "keys.json")
    with pytest.raises(InvalidInput, match="larger than"):
        read_keys(Path("/dev/zero"))


def test_changes_count_from_the_next_look_on(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    old = write_keys(path, {"alice": {}})
    ring = Keyring(path, clock=clock)
    new = write_keys(path, {"bob": {}})
    assert ring.holder(header(old["alice"])).name == "alice"
    clock.now += CHECK_EVERY_S
    check_refused(ring, header(old["alice"]))
    assert ring.holder(header(new["bob"])).name == "bob"


def test_a_broken_file_keeps_the_last_good_one_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    made = write_keys(path, {"alice": {}})
    ring = Keyring(path, clock=clock)
    assert not ring.is_stale
    for broken in (b'{"keys": [', None):
        if broken is None:
            path.unlink()
        else:
            replace_file(path, broken)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                clock.now += CHECK_EVERY_S
                assert ring.holder(header(made["alice"])).name == "alice"
        assert ring.is_stale
        assert len(caplog.records) == 1
        assert "keys file" in caplog.text
    new = write_keys(path, {"bob": {}})
    clock.now += CHECK_EVERY_S
    assert ring.holder(header(new["bob"])).name == "bob"
    assert not ring.is_stale


def test_files_that_are_written_are_read(tmp_path: Path) -> None:
    write_keys(tmp_path / "keys.json", {"alice": {"tokens_per_minute": 7, "concurrent": 1}})
    found = read_keys(tmp_path / "keys.json")
    assert KeyFile.model_validate_json(written(found)) == found
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
