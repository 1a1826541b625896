"""Where results go: regular files appear whole, everything else is written through."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from premoe_local.output_file import write_file

from premoe_runtime.formats.errors import Exhausted, InvalidInput, NotFound, Unavailable


def test_a_file_is_replaced_whole_and_keeps_its_rights(tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    write_file(out, b"one")
    out.chmod(0o600)
    write_file(out, b"two")
    assert out.read_bytes() == b"two"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [out]


def test_a_device_stays_a_device() -> None:
    write_file(Path("/dev/null"), b"nothing")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_fifo_is_written_through(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=write_file, args=(fifo, b"through"))
    writer.start()
    assert fifo.read_bytes() == b"through"
    writer.join()
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link(tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    if exists:
        target.write_bytes(b"old")
    write_file(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_what_cannot_be_written_is_one_known_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="no such folder"):
        write_file(tmp_path / "absent" / "x", b"")
    with pytest.raises(Exhausted, match="no space left"):
        write_file(Path("/dev/full"), b"x" * 100_000)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises((Unavailable, InvalidInput), match="is on a read-only file system; choose another place"):
        write_file(tmp_path / "x", b"")
