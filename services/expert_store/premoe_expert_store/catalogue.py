"""Packs of the store: manifests, read once (packs are immutable), and where blobs and files lie."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass

import blake3
from premoe_servicekit.faults import storage_fault

from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound, PremoeError
from premoe_runtime.formats.ids import ExpertId, bare_digest
from premoe_runtime.formats.manifest import Manifest, PackFile
from premoe_runtime.formats.pieces import piece_count
from premoe_runtime.packs.checks import Checks, read_checks
from premoe_runtime.packs.place import MANIFEST_FILE, pack_folder, packs_in, the_only
from premoe_runtime.storage import Store

log = logging.getLogger(__name__)

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """A pack's manifest, its bytes as stored, and its folder in the store."""

    manifest: Manifest
    document: bytes
    folder: str
    checks: Checks | None = None
    """crc32c of every piece, u32 [L, E, pieces]; None where the pack has none that can be read."""

    @property
    def blob_bytes(self) -> int:
        return self.manifest.layout.blob_bytes

    def place(self, expert: ExpertId) -> tuple[str, int]:
        """Object path and offset of a blob."""
        layer = self.manifest.layers[expert.layer]
        return f"{self.folder}/{layer.file}", layer.data_offset + expert.expert * layer.stride

    def sums(self, expert: ExpertId) -> tuple[int, ...]:
        """crc32c of a blob's pieces; empty where the pack has none."""
        return () if self.checks is None else tuple(self.checks[expert.layer, expert.expert].tolist())

    def file(self, path: str) -> PackFile:
        """A skeleton file or the piece checks. Raises NotFound for any other path."""
        for file in (*self.manifest.skeleton, self.manifest.checks):
            if file.path == path:
                return file
        raise NotFound(f"pack {self.manifest.model_id} has no file {path!r}", reason="FILE_NOT_FOUND")

    def check_experts(self, experts: Iterable[ExpertId]) -> None:
        """Raise NotFound for an expert that the model does not have."""
        for expert in experts:
            if not self.manifest.has(expert):
                raise NotFound(
                    f"pack {self.manifest.model_id} has no {expert}; it has {self.manifest.num_layers} layers of "
                    f"{slots_text(self.manifest.layer_experts)} experts",
                    reason="EXPERT_NOT_FOUND",
                )


class Catalogue:
    """Packs by model id. Raises NotFound, InvalidInput, CorruptData, Unavailable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._packs: dict[str, Pack] = {}

    async def pack(self, model_id: str) -> Pack:
        """A pack, by its id with or without ``blake3:`` in front; with an empty id the only one of the store."""
        model_id = bare_digest(model_id)
        if not model_id:
            model_id = await asyncio.to_thread(self._only)
        found = self._packs.get(model_id)
        if found is None:
            found = self._packs[model_id] = await asyncio.to_thread(self._load, model_id)
        return found

    def _load(self, model_id: str) -> Pack:
        if not _ID.fullmatch(model_id):
            raise InvalidInput(f"model id {model_id[:80]!r} is no id; give the pack's digest", reason="ID_INVALID")
        folder = pack_folder(model_id)
        try:
            document = self._store.get(f"{folder}/{MANIFEST_FILE}")
        except NotFound as error:
            raise NotFound(
                f"no pack {model_id} in {self._store.url}; make it with premoe pack", reason="MODEL_NOT_FOUND"
            ) from error
        except PremoeError as error:
            raise storage_fault(f"the manifest of pack {model_id}", error, "run premoe pack verify") from error
        where = f"the manifest of pack {model_id}"
        manifest = Manifest.parse(document, where=where)
        if manifest.model_id != model_id:
            raise CorruptData(f"{where} is that of pack {manifest.model_id}", reason="MANIFEST_INVALID")
        return Pack(manifest, document, folder, self._checks(manifest, folder))

    def _checks(self, manifest: Manifest, folder: str) -> Checks | None:
        """The pack's piece checks. Without them blobs are held against their digests alone."""
        path = f"{folder}/{manifest.checks.path}"
        shape = (manifest.num_layers, manifest.num_experts, piece_count(manifest.layout.blob_bytes))
        try:
            data = self._store.get(path)
            if blake3.blake3(data).hexdigest() != manifest.checks.digest:
                raise CorruptData(f"{self._store.at(path)} does not match its digest", reason="DIGEST_MISMATCH")
            return read_checks(data, shape, self._store.at(path))
        except (NotFound, CorruptData) as error:
            log.warning("blobs are served when all of them is checked, no earlier: %s; run premoe pack verify", error)
            return None
        except PremoeError as error:
            raise storage_fault(
                f"the piece checks of pack {manifest.model_id}", error, "run premoe pack verify"
            ) from error

    def _only(self) -> str:
        try:
            packs = packs_in(self._store)
        except PremoeError as error:
            raise storage_fault("the list of packs", error, "run premoe pack verify") from error
        return the_only(packs, self._store.url)
