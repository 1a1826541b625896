"""The gateway as a process: keys and HTTPS that change under it, and what it says and refuses at its start."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest
from support.certificates import Authority, tls_folder
from support.keys import replace_file, write_keys
from support.operator_process import wait
from support.processes import run_to_end, serving

GATEWAY = "premoe_gateway.cli"
PORTS = ("--workers", "", "--http-port", "0")


def test_keys_https_and_their_changes_without_a_restart(tmp_path: Path) -> None:
    authority = Authority()
    files = tls_folder(tmp_path / "tls", authority).flags
    keys = tmp_path / "keys.json"
    made = write_keys(keys, {"alice": {}})
    flags = ["--keys-file", str(keys), "--http-tls-cert", files["tls_cert"], "--http-tls-key", files["tls_key"]]
    trusted = ssl.create_default_context(cadata=authority.pem.decode())
    with serving(GATEWAY, [*PORTS, *flags]) as child, httpx.Client(verify=trusted) as http:
        url = str(child.ready["url"])
        assert url.startswith("https://")

        def status(key: str) -> int:
            return http.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

        assert (status(made["alice"]), status("wrong")) == (200, 401)
        assert http.get(f"{url}/ready").json()["keys"] == "ok"
        bob = write_keys(keys, {"bob": {}})["bob"]
        wait(lambda: status(bob) == 200, 60, child.stderr)
        assert status(made["alice"]) == 401
        replace_file(keys, b"{")
        wait(lambda: http.get(f"{url}/ready").json()["keys"] == "stale", 60, child.stderr)
        assert status(bob) == 200
        written = child.stderr()
    assert "what was there before stays" in written
    assert "key='bob'" in written
    assert not any(key in written for key in (*made.values(), bob))
    assert "may use the models" not in written


def test_without_keys_on_an_address_that_others_reach_it_warns(tmp_path: Path) -> None:
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
        with serving(GATEWAY, [*PORTS, "--http-host", host]) as child:
            assert ("everybody who reaches 0.0.0.0 may use the models" in child.stderr()) is warned


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--keys-file", "FOLDER/none.json"], "cannot be read: No such file"),
        (["--keys-file", "FOLDER/broken.json"], "Invalid JSON"),
        (["--http-tls-cert", "FOLDER/broken.json"], "--http-tls-key is missing"),
        (["--max-connections", "0"], "--max-connections"),
        (["--receive-timeout-s", "0"], "--receive-timeout-s"),
    ],
)
def test_what_it_cannot_start_with_is_one_line(tmp_path: Path, flags: list[str], said: str) -> None:
    (tmp_path / "broken.json").write_text("{")
    done = run_to_end(GATEWAY, [*PORTS, *(flag.replace("FOLDER", str(tmp_path)) for flag in flags)])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
