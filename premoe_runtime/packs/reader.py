"""Reading a pack: manifest, checked skeleton files, ranges of expert blobs."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import blake3

from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput, NotFound, PremoeError
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import Manifest, PackFile
from premoe_runtime.packs.place import MANIFEST_FILE, pack_folder, packs_in, the_only
from premoe_runtime.packs.ranges import Read, Run, coalesce
from premoe_runtime.storage import READ_PART_BYTES, Store, open_store

LOCAL_STREAMS = 2
REMOTE_STREAMS = 8
_MODEL_ID = re.compile(r"[0-9a-f]{64}")


class PackReader:
    """A pack below ``prefix`` of a store, as an ``ExpertSource``. Safe to use from several threads."""

    def __init__(self, store: Store, prefix: str = "", *, streams: int | None = None) -> None:
        self.store = store
        self.prefix = prefix.strip("/")
        self.bytes_read = 0
        self._streams = streams or (LOCAL_STREAMS if store.local_root is not None else REMOTE_STREAMS)
        self._lock = threading.RLock()
        self._manifest: Manifest | None = None

    @property
    def url(self) -> str:
        return self.store.at(self.prefix)

    def manifest(self) -> Manifest:
        """The checked manifest. Raises NotFound, Unavailable, or CorruptData, also when the folder names another id."""
        with self._lock:
            if self._manifest is None:
                self._manifest = self._read_manifest()
            return self._manifest

    def expect(self, *, model_id: str | None = None, weights_id: str | None = None) -> None:
        """Raise Conflict (reason WRONG_MODEL) when this is the pack of another model."""
        manifest = self.manifest()
        for what, expected, found in (
            ("model_id", model_id, manifest.model_id),
            ("weights_id", weights_id, manifest.weights_id),
        ):
            if expected is not None and expected != found:
                raise Conflict(
                    f"{self.url} is the pack of another model: {what} {found[:16]}…, expected {expected[:16]}…",
                    reason="WRONG_MODEL",
                )

    def read_file(self, path: str) -> bytes:
        """A file that the manifest lists under its pack path (``skeleton/config.json``), digest checked."""
        manifest = self.manifest()
        for file in (*manifest.skeleton, manifest.checks):
            if file.path == path:
                try:
                    data = self.store.get(self.path(path))
                except NotFound as error:
                    raise self._incomplete(f"{path} is missing") from error
                self._count(len(data))
                check_file(file, data, self.url)
                return data
        raise NotFound(f"pack {self.url} has no file {path}", reason="PACK_FILE_NOT_FOUND")

    def check_file(self, file: PackFile) -> None:
        """Read a file part by part, however large, and compare it with its digest. Raises CorruptData, Unavailable."""
        path, whole = self.path(file.path), blake3.blake3()
        try:
            size = self.store.head(path).size
            for offset in range(0, size, READ_PART_BYTES):
                part = self.store.get_range(path, offset, min(READ_PART_BYTES, size - offset))
                self._count(len(part))
                whole.update(part)
        except NotFound as error:
            raise self._incomplete(f"{file.path} is missing") from error
        _check(file, size, whole.hexdigest(), self.url)

    def fetch(
        self,
        experts: Sequence[ExpertId],
        into: Callable[[ExpertId], memoryview],
        done: Callable[[ExpertId, bool], None],
        cancelled: Callable[[], bool] = lambda: False,
        urgent: Callable[[], bool] = lambda: True,
    ) -> None:
        """See ``ExpertSource.fetch``; callbacks run in the calling thread, a few requests ahead of ``done``.

        Digests are left to the receiver, and all is urgent.
        """
        groups = self._groups(sorted(set(experts)))
        with ThreadPoolExecutor(self._streams, thread_name_prefix="pack-read") as pool:
            pending: deque[tuple[_Group, list[Future[None]]]] = deque()
            for group in groups:
                if cancelled():
                    break
                pending.append((group, self._start(pool, group, into)))
                if len(pending) >= self._streams:
                    self._finish(*pending.popleft(), done, cancelled)
            while pending:
                self._finish(*pending.popleft(), done, cancelled)

    def _groups(self, experts: Sequence[ExpertId]) -> Iterator[_Group]:
        """Neighbouring blobs of one file, up to 8 MiB together; a larger blob is a group of its own."""
        manifest = self.manifest()
        blob_bytes = manifest.layout.blob_bytes
        most = max(READ_PART_BYTES // blob_bytes, 1)
        found: list[ExpertId] = []
        for expert in experts:
            self._check_range(manifest, expert)
            adjacent = found and expert == (found[-1].layer, found[-1].expert + 1)
            packed = manifest.layers[expert.layer].stride == blob_bytes
            if found and not (adjacent and packed and len(found) < most):
                yield _Group(tuple(found))
                found = []
            found.append(expert)
        if found:
            yield _Group(tuple(found))

    def _start(
        self, pool: ThreadPoolExecutor, group: _Group, into: Callable[[ExpertId], memoryview]
    ) -> list[Future[None]]:
        manifest = self.manifest()
        reads = []
        for expert in group.experts:
            layer = manifest.layers[expert.layer]
            view = into(expert)
            if view.nbytes != manifest.layout.blob_bytes:
                raise InvalidInput(f"{expert}: {view.nbytes} bytes of room for a blob of {manifest.layout.blob_bytes}")
            offset = layer.data_offset + expert.expert * layer.stride
            reads.append(Read(self.path(layer.file), offset, view.cast("B")))
        return [pool.submit(self._read, run, group) for run in coalesce(reads)]

    def _read(self, run: Run, group: _Group) -> None:
        try:
            self._count(self.store.read_into(run.file, run.offset, run.views))
        except NotFound as error:
            raise self._incomplete(f"the file of {group} is missing") from error
        except CorruptData as error:
            raise self._incomplete(f"the file of {group} is too short") from error
        except PremoeError as error:
            raise type(error)(f"pack {self.url}, {group}: {error}", reason=error.reason) from error

    def _finish(
        self,
        group: _Group,
        reads: list[Future[None]],
        done: Callable[[ExpertId, bool], None],
        cancelled: Callable[[], bool],
    ) -> None:
        for read in reads:
            read.result()
        for expert in group.experts:
            if not cancelled():
                done(expert, False)

    def _check_range(self, manifest: Manifest, expert: ExpertId) -> None:
        if not manifest.has(expert):
            raise NotFound(
                f"pack {self.url} has no {expert}: {manifest.num_layers} layers of "
                f"{slots_text(manifest.layer_experts)} experts",
                reason="EXPERT_NOT_FOUND",
            )

    def _read_manifest(self) -> Manifest:
        try:
            data = self.store.get(self.path(MANIFEST_FILE))
        except NotFound as error:
            raise NotFound(f"{self.url}: no pack here (no {MANIFEST_FILE})", reason="PACK_NOT_FOUND") from error
        self._count(len(data))
        manifest = Manifest.parse(data, where=self.store.at(self.path(MANIFEST_FILE)))
        named = self.url.rsplit("/", 1)[-1]
        if _MODEL_ID.fullmatch(named) and named != manifest.model_id:
            raise CorruptData(
                f"{self.url} holds the pack of another model, {manifest.model_id[:16]}…; pack it again",
                reason="PACK_SWAPPED",
            )
        return manifest

    def _incomplete(self, what: str) -> CorruptData:
        """What a manifest lists and is not there is damage: whoever asked did nothing wrong."""
        return CorruptData(f"pack {self.url}: {what}; pack the model again", reason="PACK_INCOMPLETE")

    def path(self, path: str) -> str:
        """A pack path as a path of the store."""
        return f"{self.prefix}/{path}" if self.prefix else path

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self.bytes_read += num_bytes


@dataclass(frozen=True, slots=True)
class _Group:
    """Blobs fetched together."""

    experts: tuple[ExpertId, ...]

    def __str__(self) -> str:
        first, last = self.experts[0], self.experts[-1]
        return str(first) if first == last else f"layer {first.layer} experts {first.expert} to {last.expert}"


def check_file(file: PackFile, data: bytes, where: str) -> None:
    """Raise CorruptData when a pack file has another length or digest than the manifest says."""
    _check(file, len(data), blake3.blake3(data).hexdigest(), where)


def _check(file: PackFile, num_bytes: int, digest: str, where: str) -> None:
    if num_bytes != file.num_bytes:
        raise CorruptData(
            f"pack {where}: {file.path} has {num_bytes} bytes, expected {file.num_bytes}; pack the model again",
            reason="BAD_LENGTH",
        )
    if digest != file.digest:
        raise CorruptData(
            f"pack {where}: {file.path} does not match its digest; pack the model again", reason="BAD_DIGEST"
        )


def open_pack(url: str) -> PackReader:
    """The pack at ``url``, or the only pack of the store there. Raises what ``the_only`` and the manifest raise."""
    store = open_store(url)
    reader = PackReader(store, "" if store.exists(MANIFEST_FILE) else pack_folder(the_only(packs_in(store), url)))
    reader.manifest()
    return reader
