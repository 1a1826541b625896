from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from premoe_servicekit.followed import CHECK_EVERY_S
from premoe_servicekit.settings import ServerSettings
from premoe_servicekit.tls import Tls, tls_of
from support.certificates import Authority, TlsFolder, tls_folder

from premoe_runtime.formats.errors import InvalidInput


@pytest.fixture
def folder(tmp_path: Path) -> TlsFolder:
    return tls_folder(tmp_path / "tls", Authority())


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_files_there_is_no_tls() -> None:
    assert tls_of(ServerSettings()) is None


def test_all_three_files_make_tls(folder: TlsFolder) -> None:
    tls = tls_of(folder.settings(tls_server_name="premoe"))
    assert tls is not None
    assert tls.server_name == "premoe"
    assert tls.material().ca == (folder.folder / "ca.crt").read_bytes()


def other_key(folder: Path) -> None:
    (folder / "tls.key").unlink()
    (folder / "tls.key").write_bytes(Authority().issue().key)


def no_key(folder: Path) -> None:
    (folder / "tls.key").unlink()


def garbage(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).write_bytes(b"garbage")

    return write


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "key of another certificate": (other_key, r"TLS key .*tls\.key does not belong to certificate .*tls\.crt"),
    "no key": (no_key, r"TLS file .*tls\.key cannot be read: No such file"),
    "no PEM certificate": (garbage("tls.crt"), r"tls\.crt and key .* are not both PEM"),
    "no PEM key": (garbage("tls.key"), r"are not both PEM without a passphrase"),
    "no PEM authority": (garbage("ca.crt"), r"TLS authority .*ca\.crt holds no certificates"),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS.keys())
def test_bad_files_are_one_line(folder: TlsFolder, case: tuple[Callable[[Path], None], str]) -> None:
    spoil, message = case
    spoil(folder.folder)
    with pytest.raises(InvalidInput, match=message) as caught:
        tls_of(folder.settings())
    assert caught.value.reason == "TLS_INVALID"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key", "tls_ca"])
def test_half_of_the_files_is_refused(folder: TlsFolder, missing: str) -> None:
    with pytest.raises(InvalidInput, match=f"--{missing.replace('_', '-')} is missing"):
        tls_of(folder.settings(**{missing: ""}))


def test_a_server_name_alone_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--tls-server-name is given without"):
        tls_of(ServerSettings(tls_server_name="premoe"))


def opened(folder: TlsFolder, clock: Clock) -> Tls:
    flags = folder.flags
    return Tls(Path(flags["tls_cert"]), Path(flags["tls_key"]), Path(flags["tls_ca"]), clock=clock)


def test_changed_files_are_read_again_but_not_at_every_look(tmp_path: Path) -> None:
    authority, clock = Authority(), Clock()
    folder = tls_folder(tmp_path / "tls", authority)
    tls = opened(folder, clock)
    first = tls.material()
    second_pair = authority.issue()
    folder.write(second_pair, authority.pem)
    assert tls.material() is first
    clock.now += CHECK_EVERY_S
    assert tls.material().cert == second_pair.cert
    clock.now += CHECK_EVERY_S
    assert tls.material() is tls.material()


def test_a_bad_change_keeps_the_old_files_until_a_good_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority, clock = Authority(), Clock()
    folder = tls_folder(tmp_path / "tls", authority)
    tls = opened(folder, clock)
    first = tls.material()
    other_key(folder.folder)
    clock.now += CHECK_EVERY_S
    assert tls.material() is first
    assert "does not belong to certificate" in caplog.text
    os.unlink(folder.folder / "tls.key")
    (folder.folder / "tls.key").symlink_to("..data/tls.key")
    pair = authority.issue()
    folder.write(pair, authority.pem)
    clock.now += CHECK_EVERY_S
    assert tls.material().key == pair.key


@pytest.mark.parametrize("text", ["", "none", " None "])
def test_the_health_port_can_be_turned_off_by_variable(text: str) -> None:
    assert ServerSettings(health_port=text, max_connection_age_s=text) == ServerSettings()  # type: ignore[arg-type]
