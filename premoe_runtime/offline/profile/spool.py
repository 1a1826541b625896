"""Layer inputs and gradients on disk, between the layers of a measurement that has one layer in memory at a time.

The system keeps in memory what of it there is room for. Every file ends with the digest of its bytes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import blake3
from torch import Tensor

from premoe_runtime.engines.hf.skeleton import bytes_of, dtype_name, read_tensors
from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted, InvalidInput
from premoe_runtime.formats.safetensors import encode_header

_DIGEST_BYTES = 32


def default_spool() -> Path:
    """Where layer inputs lie when nobody says: the user's cache folder, which a pod has, too."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "premoe" / "spool"


class Spool:
    """One task's folder, held by one process at a time (``open_spool``)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor under a name. Raises Exhausted when the disk is full."""
        whole = tensor.detach().contiguous().cpu()
        header = encode_header([("hidden", dtype_name(whole.dtype), tuple(whole.shape))])
        data, digest = bytes_of(whole), blake3.blake3(header)
        digest.update(data)
        try:
            with open(self.folder / name, "wb") as file:
                file.write(header)
                file.write(data)
                file.write(digest.digest())
        except OSError as error:
            raise Exhausted(f"{self.folder / name}: {error.strerror}; give --spool more room") from error

    def read(self, name: str) -> Tensor:
        """The tensor, in main memory. Raises CorruptData when it is damaged or gone."""
        path = self.folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise self._damaged(path) from error
        body = data[:-_DIGEST_BYTES]
        if blake3.blake3(body).digest() != data[-_DIGEST_BYTES:]:
            raise self._damaged(path)
        [(_, tensor)] = read_tensors(body, str(path))
        return tensor

    def drop(self, *names: str) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                (self.folder / name).unlink()

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def keep_only(self, settings: str) -> None:
        """Remove what was measured otherwise."""
        mark = self.folder / "settings"
        if not mark.is_file() or mark.read_text() != settings:
            self.drop(*(file.name for file in self.folder.iterdir() if file.name != "lock"))
            mark.write_text(settings)

    def clear(self) -> None:
        """The measurement has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _damaged(self, path: Path) -> CorruptData:
        return CorruptData(
            f"{path}: what a stopped profile left here is damaged; remove {self.folder} and start again",
            reason="SPOOL_DAMAGED",
        )


@contextmanager
def open_spool(folder: Path, settings: str, room_bytes: int) -> Iterator[Spool]:
    """The folder, for this process alone; it stays, for a later run of these settings, until it is cleared.

    ``room_bytes``: of all that will lie there. Raises Exhausted when the disk has less, Conflict while another process
    uses it, InvalidInput for a folder that cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise InvalidInput(
            f"{folder}: no folder for the layers' inputs can be made here: {error.strerror}; give another --spool",
            reason="SPOOL_INVALID",
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(
                f"{folder}: another process measures this; wait for it, or give another --spool",
                reason="SPOOL_IN_USE",
            ) from error
        spool = Spool(folder)
        spool.keep_only(settings)
        free = shutil.disk_usage(folder).free + sum(file.stat().st_size for file in folder.iterdir())
        if free < room_bytes:
            raise Exhausted(
                f"{folder}: the inputs of all layers take {room_bytes >> 20} MiB of disk, and {free >> 20} MiB are "
                "free; give a --spool with more room, or less data (--limit)",
                reason="SPOOL_NO_ROOM",
            )
        yield spool
    finally:
        os.close(lock)
