"""The staging area of an unfinished pack: finished parts with their digests, so that a killed run can go on.

``staging/<source key>/pack/`` holds the pack's files, ``staging/<source key>/records/`` one record per finished file.
``sources/<source key>.json`` names the model that a source state was packed into; it counts only while that pack is
complete.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from premoe_runtime.formats.documents import ObjectId
from premoe_runtime.formats.errors import Conflict, CorruptData, NotFound
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.place import MANIFEST_FILE, pack_folder
from premoe_runtime.storage import READ_PART_BYTES, ObjectInfo, Store
from premoe_runtime.storage.failures import mapped_errors


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    """Length of the finished file: a staged file of another length is written again."""
    tensors: dict[str, str]
    """blake3 of the data of every source tensor in it."""


class LayerRecord(_Record):
    """A finished expert file: digest and piece checks of every blob."""

    digests: tuple[str, ...]
    checks: tuple[tuple[int, ...], ...]


class ShardRecord(_Record):
    """A finished skeleton shard."""

    digest: str


class _SourceMark(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model_id: ObjectId


STAGING_FOLDER = "staging"
MARKS_FOLDER = "sources"
_LOCK = "lock#0"
"""'#' and digits: no listing shows it."""
RecordT = TypeVar("RecordT", bound=_Record)


class Staging:
    """The staging area of one source state in one store."""

    def __init__(self, store: Store, key: str) -> None:
        self.store = store
        self.key = key
        self.root = f"{STAGING_FOLDER}/{key}"

    def path(self, file: str) -> str:
        """Where a file of the pack is staged."""
        return f"{self.root}/pack/{file}"

    def load(self, file: str, kind: type[RecordT]) -> RecordT | None:
        """The record of a finished file, if it is staged with the recorded length."""
        try:
            record = kind.model_validate_json(self.store.get(self._record(file)))
            found = self.store.head(self.path(file)).size
        except (NotFound, ValidationError):
            return None
        return record if found == record.num_bytes else None

    def save(self, file: str, record: _Record) -> None:
        """Record a file as finished; call it after the file was written."""
        self.store.put(self._record(file), record.model_dump_json().encode())

    def publish(self, manifest: Manifest) -> None:
        """Make the staged pack visible under its id, manifest last, and clear the staging area.

        The mark is written first: a run killed in between finds the staged files and publishes again. Where a pack of
        this id is there already, files that are equal stay as they are, and all others are replaced.
        """
        self.mark(manifest)
        target = pack_folder(manifest.model_id)
        if read_manifest(self.store, manifest.model_id) is None:
            self.store.put(self.path(MANIFEST_FILE), manifest.to_json())
        for info in self.store.list(target):
            staged = self.path(info.path.removeprefix(f"{target}/"))
            if _same(self.store, staged, info):
                self.store.delete(staged)
        self.store.move_prefix(f"{self.root}/pack", target, last=MANIFEST_FILE)
        self.clear()

    def mark(self, manifest: Manifest) -> None:
        """Record what this source state is packed into."""
        self.store.put(self._mark, _SourceMark(model_id=manifest.model_id).model_dump_json().encode())

    def published(self) -> Manifest | None:
        """The manifest of the complete pack that this source state was packed into before."""
        model_id = self.marked()
        return is_complete(self.store, model_id) if model_id else None

    def packed(self) -> Manifest | None:
        """Like ``published``, whatever state the pack's other files are in."""
        model_id = self.marked()
        return read_manifest(self.store, model_id) if model_id else None

    def forget(self) -> None:
        """Forget what this source state was packed into."""
        self.store.delete(self._mark)

    def marked(self) -> str:
        """The model id that this source state's mark names; empty without one, or where it cannot be read."""
        try:
            return _SourceMark.model_validate_json(self.store.get(self._mark)).model_id
        except (NotFound, ValidationError):
            return ""

    def clear(self) -> None:
        """Remove everything staged."""
        self.store.delete_prefix(self.root)
        if self.store.local_root is not None:
            with suppress(OSError):  # not empty: another source is being packed
                (self.store.local_root / STAGING_FOLDER).rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """On a local store, keep a second packer of the same source out. Raises Conflict (PACK_RUNNING)."""
        with only_one(self.store, self.root, "packing this checkpoint", "PACK_RUNNING"):
            for path in (f"{self.root}/pack", f"{self.root}/records", self._mark):
                self.store.sweep(path)
            yield

    def is_locked(self) -> bool:
        """Whether a process on this machine packs this source to a local store just now."""
        root = self.store.local_root
        if root is None:
            return False
        try:
            with open(root / self.root / _LOCK, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    @property
    def _mark(self) -> str:
        return f"{MARKS_FOLDER}/{self.key}.json"

    def _record(self, file: str) -> str:
        return f"{self.root}/records/{file}.json"


@contextmanager
def only_one(store: Store, folder: str, doing: str, reason: str) -> Iterator[None]:
    """On a local store, lock ``folder`` against a second process. Raises Conflict (``reason``).

    Elsewhere two processes write the same bytes under the same names, which is harmless.
    """
    root = store.local_root
    if root is None:
        yield
        return
    with mapped_errors(store.url):
        (root / folder).mkdir(parents=True, exist_ok=True)
        lock = open(root / folder / _LOCK, "wb")  # noqa: SIM115
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"{store.url}: another process is {doing}; wait for it", reason=reason) from error
        yield


def is_complete(store: Store, model_id: str) -> Manifest | None:
    """The manifest of a published pack whose files are all there with the right lengths, else None."""
    manifest = read_manifest(store, model_id)
    if manifest is None:
        return None
    prefix = pack_folder(model_id)
    sizes = {info.path.removeprefix(f"{prefix}/"): info.size for info in store.list(prefix)}
    expected = {file.path: file.num_bytes for file in (*manifest.skeleton, manifest.checks)}
    expected |= {layer.file: layer.data_offset + layer.stride * len(layer.digests) for layer in manifest.layers}
    return manifest if all(sizes.get(path) == size for path, size in expected.items()) else None


def read_manifest(store: Store, model_id: str) -> Manifest | None:
    """The manifest of a published pack, if it is there and is that of this model."""
    path = f"{pack_folder(model_id)}/{MANIFEST_FILE}"
    try:
        manifest = Manifest.parse(store.get(path), where=path)
    except (NotFound, CorruptData):
        return None
    return manifest if manifest.model_id == model_id else None


def _same(store: Store, path: str, other: ObjectInfo) -> bool:
    """Whether two objects hold the same bytes."""
    try:
        size = store.head(path).size
    except NotFound:
        return False
    parts = ((start, min(READ_PART_BYTES, size - start)) for start in range(0, size, READ_PART_BYTES))
    return size == other.size and all(
        store.get_range(path, *part) == store.get_range(other.path, *part) for part in parts
    )
