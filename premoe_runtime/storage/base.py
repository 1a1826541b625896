"""The object-store client that every backend shares: reads, listings and writes through obstore."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import obstore
from obstore import exceptions as failures

from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound
from premoe_runtime.storage.failures import mapped_errors

Data = bytes | bytearray | memoryview

WRITE_PART_BYTES = 8 << 20
READ_PART_BYTES = 8 << 20
S3_COPY_LIMIT = 5 * 10**9  # CopyObject refuses more than 5 GiB


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object. ``modified`` is seconds since 1970; ``etag`` is empty where the store has none."""

    path: str
    size: int
    etag: str = ""
    modified: float = 0.0


class Writer(Protocol):
    """An object being written; it appears under its name, whole, when its context ends without an exception."""

    def write(self, data: Data, /) -> None:
        """Append ``data``, which may be overwritten as soon as this returns."""


class Store:
    """An object store rooted at ``url``; paths are relative, '/'-separated. Blocking; safe from several threads.

    Every method raises NotFound (no such object), Unavailable (the store does not answer), Exhausted (no room),
    InvalidInput (bad path, refused access) and nothing else.
    """

    def __init__(self, url: str, backend: Any) -> None:
        scheme, separator, rest = url.partition("://")
        self.url = scheme + separator + rest.rstrip("/")
        self._backend = backend
        self._read = 0
        self._count_lock = threading.Lock()

    @property
    def bytes_read(self) -> int:
        """Object bytes read through this client since it was opened."""
        return self._read

    @property
    def local_root(self) -> Path | None:
        """The folder behind a ``file://`` store, else None."""
        return None

    def get(self, path: str) -> bytes:
        """The whole object."""
        with self._mapped(path):
            data = bytes(obstore.get(self._reads(), path).bytes())
        self._count(len(data))
        return data

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``. Raises CorruptData when the object is shorter."""
        if length == 0:
            return b""
        with self._mapped(path):
            data = bytes(obstore.get_range(self._reads(), path, start=offset, length=length))
        self._check_whole(len(data), path, offset, length)
        return data

    def read_range(self, path: str, offset: int, length: int) -> memoryview:
        """As ``get_range``, in whatever memory the client received it: without a copy."""
        if length == 0:
            return memoryview(b"")
        with self._mapped(path):
            data = memoryview(obstore.get_range(self._reads(), path, start=offset, length=length))
        self._check_whole(len(data), path, offset, length)
        return data

    def read_into(self, path: str, offset: int, views: Sequence[memoryview]) -> int:
        """Fill writable byte views one after another from ``offset``; one request. Returns the bytes read."""
        total = sum(view.nbytes for view in views)
        if total == 0:
            return 0
        with self._mapped(path):
            data = memoryview(obstore.get_range(self._reads(), path, start=offset, length=total))
        self._check_whole(len(data), path, offset, total)
        at = 0
        for view in views:
            view[:] = data[at : at + view.nbytes]
            at += view.nbytes
        return total

    def put(self, path: str, data: Data) -> None:
        """Write the whole object atomically, replacing what was there."""
        with self._mapped(path):
            obstore.put(self._backend, path, bytes(data))

    def put_if_absent(self, path: str, data: bytes) -> None:
        """Write the object atomically. Raises Conflict (reason OBJECT_EXISTS) when it is there already."""
        with self._mapped(path):
            obstore.put(self._backend, path, data, mode="create")

    @contextmanager
    def writer(self, path: str) -> Iterator[Writer]:
        """Stream a large object: atomic, aborted (nothing visible) when the block raises."""
        with self._mapped(path):
            out = obstore.open_writer(self._backend, path, buffer_size=WRITE_PART_BYTES, max_concurrency=4)
        try:
            # An upload goes on after ``write`` returned, from the memory it was given: that has to be its own.
            yield GuardedWriter(lambda data: out.write(bytes(data)), self.at(path))
        except BaseException as error:
            with suppress(failures.BaseError):
                out.__exit__(type(error), error, error.__traceback__)  # aborts the upload
            raise
        with self._mapped(path):
            out.close()

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Every object below ``prefix`` (whole path segments), sorted by path; empty when there is none."""
        with self._mapped_listing(prefix):
            found = [meta for batch in obstore.list(self._reads(), prefix=prefix or None) for meta in batch]
        return sorted((_info(meta) for meta in found), key=lambda info: info.path)

    def list_names(self, prefix: str = "") -> tuple[str, ...]:
        """Names directly below ``prefix``, objects and folders alike, sorted."""
        with self._mapped_listing(prefix):
            found = obstore.list_with_delimiter(self._reads(), prefix=prefix or None)
        paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
        return tuple(sorted({path.rstrip("/").rsplit("/", 1)[-1] for path in paths}))

    def head(self, path: str) -> ObjectInfo:
        """Size and stamps of an object."""
        with self._mapped(path):
            return _info(obstore.head(self._reads(), path))

    def exists(self, path: str) -> bool:
        try:
            self.head(path)
        except NotFound:
            return False
        return True

    def delete(self, path: str) -> None:
        """Remove an object; no error when it is gone already."""
        with suppress(NotFound), self._mapped(path):
            obstore.delete(self._backend, path)

    def delete_prefix(self, prefix: str) -> None:
        """Remove everything below ``prefix``."""
        for info in self.list(prefix):
            self.delete(info.path)

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the store, on the server's side where its limits allow."""
        size = self.head(source).size
        if size < S3_COPY_LIMIT:
            with self._mapped(source):
                obstore.copy(self._backend, source, target)
            return
        with self.writer(target) as out:
            for offset in range(0, size, READ_PART_BYTES):
                out.write(self.get_range(source, offset, min(READ_PART_BYTES, size - offset)))

    def move_prefix(self, source: str, target: str, *, last: str) -> None:
        """Move every object from below ``source`` to below ``target``; ``last`` (a relative path) appears last.

        On a local store this is one rename of the folder when ``target`` does not exist yet.
        """
        paths = sorted((info.path for info in self.list(source)), key=lambda path: path == f"{source}/{last}")
        for path in paths:
            self.copy(path, target + path.removeprefix(source))
        for path in paths:
            self.delete(path)

    def unfinished(self, prefix: str) -> tuple[ObjectInfo, ...]:
        """Files below ``prefix`` that are being written, or that killed writers left behind, sorted by path."""
        return ()

    def sweep(self, path: str) -> None:
        """Remove what killed writers of ``path``, and of everything below it, left behind."""

    def free_bytes(self) -> int | None:
        """Room left, where the store can say so."""
        return None

    def at(self, path: str) -> str:
        """The full URL of a path, for messages."""
        slash = "" if self.url.endswith("/") else "/"
        return f"{self.url}{slash}{path}" if path else self.url

    def _reads(self) -> Any:
        return self._backend

    def _count(self, num_bytes: int) -> None:
        with self._count_lock:
            self._read += num_bytes

    def _check_whole(self, found: int, path: str, offset: int, length: int) -> None:
        self._count(found)
        if found != length:
            raise CorruptData(
                f"{self.at(path)} is too short: {length} bytes wanted at offset {offset}, {found} there; "
                "write the object again",
                reason="OBJECT_TRUNCATED",
            )

    def _mapped(self, path: str) -> AbstractContextManager[None]:
        if any(part in ("", ".", "..") or "\0" in part for part in path.split("/")):
            raise InvalidInput(f"{self.url}: {path!r} is no object path", reason="OBJECT_PATH")
        return mapped_errors(self.at(path))

    def _mapped_listing(self, prefix: str) -> AbstractContextManager[None]:
        return self._mapped(prefix) if prefix else mapped_errors(self.url)


@dataclass(frozen=True, slots=True)
class GuardedWriter:
    """Maps the errors of writing only, not those of the code that produces the data."""

    write_all: Callable[[Data], object]
    where: str

    def write(self, data: Data, /) -> None:
        with mapped_errors(self.where):
            self.write_all(data)


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta.get("e_tag") or "", meta["last_modified"].timestamp())
