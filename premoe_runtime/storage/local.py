"""A folder as an object store.

obstore's local backend writes a temporary file and renames it, but never syncs it, and reports a full disk as a
generic error; so writes here are our own.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from obstore.store import LocalStore as LocalBackend

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.storage.base import READ_PART_BYTES, Data, GuardedWriter, ObjectInfo, Store, Writer
from premoe_runtime.storage.failures import mapped_errors

WRITE_BYTES = 1 << 20
"""Of one system call: longer ones take two to six times the processor's time a byte (page cache of Linux 6.18)."""
_UNFINISHED = re.compile(r".+#\d+")


class LocalStore(Store):
    """A folder. Writes go to a hidden temporary name, are synced, and then renamed."""

    def __init__(self, root: Path) -> None:
        super().__init__("file://" + quote(str(root)), None)
        self._root = root

    @property
    def local_root(self) -> Path | None:
        return self._root

    def put(self, path: str, data: Data) -> None:
        with self.writer(path) as out:
            out.write(data)

    def put_if_absent(self, path: str, data: bytes) -> None:
        with self._temporary(path) as (temporary, target, descriptor), self._mapped(path):
            _write_all(descriptor, data)
            os.fsync(descriptor)
            os.link(temporary, target)
            _sync_folder(target.parent)

    @contextmanager
    def writer(self, path: str) -> Iterator[Writer]:
        with self._temporary(path) as (temporary, target, descriptor):
            yield GuardedWriter(lambda data: _write_all(descriptor, data), self.at(path))
            with self._mapped(path):
                os.fsync(descriptor)
                os.replace(temporary, target)
                _sync_folder(target.parent)

    def read_range(self, path: str, offset: int, length: int) -> memoryview:
        data = bytearray(length)
        self.read_into(path, offset, [memoryview(data)])
        return memoryview(data)

    def read_into(self, path: str, offset: int, views: Sequence[memoryview]) -> int:
        read = 0
        with self._mapped(path), open(self._place(path), "rb", buffering=0) as file:
            for view in views:
                filled = 0
                while filled < view.nbytes:
                    got = os.preadv(file.fileno(), [view[filled:]], offset + read)
                    if not got:
                        self._check_whole(read, path, offset, sum(view.nbytes for view in views))
                    filled, read = filled + got, read + got
        self._count(read)
        return read

    def delete(self, path: str) -> None:
        with self._mapped(path), suppress(FileNotFoundError):
            self._place(path).unlink()

    def delete_prefix(self, prefix: str) -> None:
        with self._mapped(prefix), suppress(FileNotFoundError):
            shutil.rmtree(self._place(prefix))

    def copy(self, source: str, target: str) -> None:
        with self._mapped(source), open(self._place(source), "rb") as data:
            with self.writer(target) as out:
                while part := data.read(READ_PART_BYTES):
                    out.write(part)

    def move_prefix(self, source: str, target: str, *, last: str) -> None:
        with self._mapped(target):
            old, new = self._place(source), self._place(target)
            new.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(old, new)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                _sync_folder(new.parent)
                return
        super().move_prefix(source, target, last=last)
        self.delete_prefix(source)

    def unfinished(self, prefix: str) -> tuple[ObjectInfo, ...]:
        found = []
        with self._mapped(prefix):
            for place in self._place(prefix).glob("**/*#*"):
                if _UNFINISHED.fullmatch(place.name):
                    with suppress(FileNotFoundError):
                        status = place.stat()
                        path = place.relative_to(self._root).as_posix()
                        found.append(ObjectInfo(path, status.st_size, modified=status.st_mtime))
        return tuple(sorted(found, key=lambda info: info.path))

    def sweep(self, path: str) -> None:
        place = self._place(path)
        with self._mapped(path):
            for found in (*place.parent.glob(glob.escape(place.name) + "#*"), *place.glob("**/*#*")):
                if _UNFINISHED.fullmatch(found.name):
                    found.unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        place = self._root
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    @contextmanager
    def _mapped(self, path: str) -> Iterator[None]:
        try:
            with super()._mapped(path):
                yield
        except NotFound as error:
            if odd := _no_file(self._place(path)):
                raise NotFound(f"{self.at(path)} {odd}", reason=error.reason) from error
            raise

    def _mapped_listing(self, prefix: str) -> AbstractContextManager[None]:
        return super()._mapped(prefix) if prefix else mapped_errors(self.url)

    def _reads(self) -> Any:
        if self._backend is None:
            if not self._root.is_dir():
                raise NotFound(f"{self.url}: no such folder", reason="OBJECT_NOT_FOUND")
            self._backend = LocalBackend(self._root)
        return self._backend

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        return super().list(prefix) if self._root.is_dir() else []

    def list_names(self, prefix: str = "") -> tuple[str, ...]:
        return super().list_names(prefix) if self._root.is_dir() else ()

    def _place(self, path: str) -> Path:
        return self._root.joinpath(*path.split("/"))

    @contextmanager
    def _temporary(self, path: str) -> Iterator[tuple[str, Path, int]]:
        """A fresh file beside the target (name, target, descriptor), removed if it is still there afterwards."""
        with self._mapped(path):
            target = self._place(path)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise InvalidInput(
                    f"{self.at(path)}: a file is where its folder should be", reason="STORE_URL"
                ) from error
        # obstore's listings leave out names that end in '#' and digits: no listing shows an unfinished file
        temporary = f"{target}#{int.from_bytes(os.urandom(6), 'big')}"
        with self._mapped(path):
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        try:
            yield temporary, target, descriptor
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def _no_file(place: Path) -> str:
    """What is where a file should be; empty where there is nothing, or a file."""
    if place.is_dir():
        return "is a folder where a file should be; remove it"
    if place.is_symlink() and not os.path.exists(place):
        return f"is a link to {os.readlink(place)}, which is not there; put back what it leads to, or remove it"
    return ""


def _write_all(descriptor: int, data: Data) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left[:WRITE_BYTES]) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
