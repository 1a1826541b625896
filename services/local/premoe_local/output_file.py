"""Files that commands write for people."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from premoe_runtime.formats.errors import NotFound
from premoe_runtime.storage.failures import mapped_errors


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: regular files appear whole or not at all, everything else is written through.

    A link stays a link: what it names is written. Raises NotFound (no such folder), InvalidInput (no right to it),
    Exhausted (disk full), Unavailable (the system refuses otherwise, for example a read-only file system).
    """
    check_folder(path)
    with mapped_errors(str(path)):
        if _is_special(path):
            path.write_bytes(data)
        else:
            _replace(path.resolve(), data)


def check_folder(path: Path) -> None:
    """Raise NotFound now for a file that could not be written after an hour's work."""
    if not path.absolute().parent.is_dir():
        raise NotFound(f"{path}: no such folder", reason="FOLDER_NOT_FOUND")


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, partial)
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
