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

from premoe_runtime.formats.errors import Conflict, CorruptData, NotFound
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.layout import MANIFEST_FILE
from premoe_runtime.storage import Store


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

    model_id: str


RecordT = TypeVar("RecordT", bound=_Record)


class Staging:
    """The staging area of one source state in one store."""

    def __init__(self, store: Store, key: str) -> None:
        self.store = store
        self.key = key
        self.root = f"staging/{key}"

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

        The mark is written first: a run killed in between finds the staged files and publishes again.
        """
        self.store.put(self._mark, _SourceMark(model_id=manifest.model_id).model_dump_json().encode())
        target = f"models/{manifest.model_id}"
        if not is_complete(self.store, manifest.model_id):
            self.store.put(self.path(MANIFEST_FILE), manifest.to_json())
            self.store.move_prefix(f"{self.root}/pack", target, last=MANIFEST_FILE)
        self.clear()

    def published(self) -> Manifest | None:
        """The manifest of the complete pack that this source state was packed into before."""
        try:
            mark = _SourceMark.model_validate_json(self.store.get(self._mark))
            return is_complete(self.store, mark.model_id)
        except (NotFound, ValidationError):
            return None

    def clear(self) -> None:
        """Remove everything staged."""
        self.store.delete_prefix(self.root)
        if self.store.local_root is not None:
            with suppress(OSError):  # not empty: another source is being packed
                (self.store.local_root / "staging").rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """On a local store, keep a second packer of the same source out. Raises Conflict (PACK_RUNNING).

        Elsewhere two packers write the same bytes under the same names, which is harmless.
        """
        root = self.store.local_root
        if root is None:
            yield
            return
        folder = root / self.root
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock#0", "wb") as file:  # '#' and digits: no listing shows it
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(
                    f"{self.store.url}: another process is packing this checkpoint; wait for it", reason="PACK_RUNNING"
                ) from error
            for path in (f"{self.root}/pack", f"{self.root}/records", self._mark):
                self.store.sweep(path)
            yield

    @property
    def _mark(self) -> str:
        return f"sources/{self.key}.json"

    def _record(self, file: str) -> str:
        return f"{self.root}/records/{file}.json"


def is_complete(store: Store, model_id: str) -> Manifest | None:
    """The manifest of a published pack whose files are all there with the right lengths, else None."""
    prefix = f"models/{model_id}"
    try:
        manifest = Manifest.parse(store.get(f"{prefix}/{MANIFEST_FILE}"), where=f"{prefix}/{MANIFEST_FILE}")
    except (NotFound, CorruptData):
        return None
    sizes = {info.path.removeprefix(f"{prefix}/"): info.size for info in store.list(prefix)}
    expected = {file.path: file.num_bytes for file in (*manifest.skeleton, manifest.checks)}
    expected |= {layer.file: layer.data_offset + layer.stride * manifest.num_experts for layer in manifest.layers}
    complete = manifest.model_id == model_id and all(sizes.get(path) == size for path, size in expected.items())
    return manifest if complete else None
