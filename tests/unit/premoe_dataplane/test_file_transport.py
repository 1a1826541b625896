"""Files that are not what they should be, and mappings that must not outlive their files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from premoe_dataplane.plan import BlobPlan, Source
from premoe_dataplane.transports.base import Part
from premoe_dataplane.transports.file import FileTransport

from premoe_runtime.formats.ids import ExpertId

DATA = bytes(range(256)) * 32
JOIN_S = 20.0


def read(files: FileTransport, path: Path, offset: int = 0) -> bytes | None:
    """The blob, or None when nothing landed."""
    source = Source("file", "node", str(path), offset)
    part = Part(BlobPlan(ExpertId(0, 0), "", len(DATA), (source,)), source, memoryview(bytearray(len(DATA))), (0,))
    landed: list[int] = []
    files.read([part], lambda part, index: landed.append(index), lambda: False)
    return bytes(part.into) if landed else None


def eventually(true: Callable[[], bool]) -> None:
    until = time.monotonic() + JOIN_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "blob"
    made.write_bytes(DATA)
    return made


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("other")))


WRONG: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "short": lambda path: path.write_bytes(DATA[:-1]),
    "long": lambda path: path.write_bytes(DATA + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": folder,
    "a pipe without a writer": pipe,
    "a link": link,
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("mapped", [False, True], ids=["first", "after it was mapped"])
def test_what_is_no_file_of_the_right_size_has_no_piece(
    path: Path, spoil: Callable[[Path], object], mapped: bool
) -> None:
    files = FileTransport()
    if mapped:
        assert read(files, path) == DATA
    spoil(path)
    assert read(files, path) is None
    files.close()


def test_a_blob_may_lie_inside_a_file(path: Path) -> None:
    files = FileTransport()
    path.write_bytes(b"before" + DATA + b"after")
    assert read(files, path, 6) == DATA
    assert read(files, path, 12) is None
    files.close()


def test_another_file_under_the_name_is_read_anew(path: Path) -> None:
    files = FileTransport()
    assert read(files, path) == DATA
    other = path.with_name("other")
    other.write_bytes(DATA[::-1])
    other.replace(path)
    assert read(files, path) == DATA[::-1]
    files.close()


def test_mappings_are_few_and_go_with_their_files_even_if_nobody_reads(tmp_path: Path) -> None:
    files = FileTransport(most=3, sweep_s=0.05)
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.write_bytes(DATA)
        assert read(files, path) == DATA
    assert files.mapped == 3
    paths[-1].unlink()
    eventually(lambda: files.mapped == 2)
    for path in paths[:-1]:
        path.unlink()
    eventually(lambda: files.mapped == 0)
    files.close()
