"""`premoe keys` writes what a gateway reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe_gateway.access.keyring import Keyring
from premoe_gateway.access.keys import read_keys
from premoe_local.cli import command as premoe

from premoe_runtime.formats.errors import InvalidInput


def run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, ["keys", *[str(argument) for argument in arguments]])


def test_a_key_is_shown_once_and_lets_its_holder_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made = run("add", path, "alice", "--requests-per-minute", 60, "--tokens-per-minute", 900, "--concurrent", 2)
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert key not in path.read_text()
    found = Keyring(path).holder(f"Bearer {key}".encode())
    assert (found.name, found.requests_per_minute, found.tokens_per_minute, found.concurrent) == ("alice", 60, 900, 2)
    as_json = json.loads(run("add", path, "bob", "--json").stdout)
    assert Keyring(path).holder(f"Bearer {as_json['key']}".encode()).name == as_json["name"] == "bob"
    listed = run("list", path)
    assert "alice" in listed.stdout
    assert "bob" in listed.stdout
    assert [key["name"] for key in json.loads(run("list", path, "--json").stdout)] == ["alice", "bob"]
    assert found.sha256 not in run("list", path, "--json").stdout
    assert run("revoke", path, "alice").exit_code == 0
    with pytest.raises(InvalidInput, match="revoked"):
        Keyring(path).holder(f"Bearer {key}".encode())
    assert Keyring(path).holder(f"Bearer {as_json['key']}".encode()).name == "bob"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("add", "FILE", "alice"), 4, "has a key alice already"),
        (("add", "FILE", "a b"), 2, "'a b' is no name for a key"),
        (("add", "FILE", "bob", "--concurrent", "0"), 2, "0 is not in the range"),
        (("add", "NOWHERE", "bob"), 3, "no such folder"),
        (("list", "NEW"), 2, "cannot be read: No such file"),
        (("revoke", "FILE", "bob"), 3, "has no key bob"),
        (("revoke", "BROKEN", "bob"), 2, "Invalid JSON"),
        (("add", "BROKEN", "bob"), 2, "Invalid JSON"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    path, broken = tmp_path / "keys.json", tmp_path / "broken.json"
    run("add", path, "alice")
    broken.write_text("{")
    before = path.read_bytes()
    places = {"FILE": path, "BROKEN": broken, "NEW": tmp_path / "none.json", "NOWHERE": tmp_path / "none" / "keys.json"}
    result = run(*(places.get(word, word) for word in arguments))
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert path.read_bytes() == before
    assert broken.read_text() == "{"
    assert len(read_keys(path).keys) == 1
