"""Packs of the store: manifests, read once (packs are immutable), and where blobs and files lie."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import blake3
from premoe_servicekit.deadlines import no_deadline
from premoe_servicekit.faults import storage_fault
from premoe_servicekit.roles import SHARED, Caller

from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound, PremoeError
from premoe_runtime.formats.ids import ExpertId, bare_digest, is_tenant
from premoe_runtime.formats.manifest import Manifest, PackFile
from premoe_runtime.formats.pieces import piece_count
from premoe_runtime.packs.checks import Checks, read_checks
from premoe_runtime.packs.place import MANIFEST_FILE, pack_folder, packs_in, the_only
from premoe_runtime.storage import Store

log = logging.getLogger(__name__)

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")

_Place = tuple[str, str]
"""A tenant, empty for the shared ones, and a model id."""


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """A pack's manifest, its bytes as stored, and its folder in the store."""

    manifest: Manifest
    document: bytes
    folder: str
    tenant: str = ""
    """Whose it is; empty: everybody's."""
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
    """Packs by model id. Call from one event loop. Raises NotFound, InvalidInput, CorruptData, Unavailable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._packs: dict[_Place, Pack] = {}
        self._loading: dict[_Place, asyncio.Task[Pack]] = {}

    async def pack(self, model_id: str, caller: Caller = SHARED) -> Pack:
        """A pack that the caller sees: one of its tenant's before a shared one.

        By its id, with or without ``blake3:`` in front; with an empty id the only one of its tenant, or else of the
        shared ones. ``TENANT/ID`` names another tenant's, for who may see all. As ids are digests, a shared pack that
        is known is as good as the tenant's own.
        """
        tenants, name = self._asked(model_id, caller)
        if not name:
            tenants, name = await asyncio.to_thread(self._only, tenants)
        for tenant in tenants:
            if (found := self._packs.get((tenant, name))) is not None:
                return found
        for tenant in tenants[:-1]:
            with suppress(NotFound):
                return await self._loaded((tenant, name))
        return await self._loaded((tenants[-1], name))

    def _asked(self, model_id: str, caller: Caller) -> tuple[list[str], str]:
        """Tenants to look at, in turn, and the bare id."""
        tenant, named, name = model_id.rpartition("/")
        name = bare_digest(name)
        right = _ID.fullmatch(name) and is_tenant(tenant) if named else not name or _ID.fullmatch(name)
        if not right:
            raise InvalidInput(f"model id {model_id[:80]!r} is no id; give the pack's digest", reason="ID_INVALID")
        if not named:
            return list(dict.fromkeys((caller.tenant, ""))), name
        if not caller.anywhere and tenant != caller.tenant:
            raise self._unknown(model_id)
        return [tenant], name

    async def _loaded(self, place: _Place) -> Pack:
        """Read once, however many ask at the same time."""
        task = self._loading.get(place)
        if task is None:
            with no_deadline():
                task = self._loading[place] = asyncio.create_task(asyncio.to_thread(self._load, *place))
            task.add_done_callback(lambda done: self._took(place, done))
        try:
            return await asyncio.shield(task)
        except PremoeError as error:
            # Another instance for everybody: a raised one carries the traceback of who raised it first.
            raise type(error)(str(error), reason=error.reason) from error

    def _took(self, place: _Place, done: asyncio.Task[Pack]) -> None:
        del self._loading[place]
        if not done.cancelled() and done.exception() is None:
            self._packs[place] = done.result()

    def _unknown(self, name: str) -> NotFound:
        return NotFound(f"no pack {name} in {self._store.url}; make it with premoe pack", reason="MODEL_NOT_FOUND")

    def _load(self, tenant: str, model_id: str) -> Pack:
        folder = pack_folder(model_id, tenant)
        try:
            document = self._store.get(f"{folder}/{MANIFEST_FILE}")
        except NotFound as error:
            raise self._unknown(model_id) from error
        except PremoeError as error:
            raise storage_fault(f"the manifest of pack {model_id}", error, "run premoe pack verify") from error
        where = f"the manifest of pack {model_id}"
        manifest = Manifest.parse(document, where=where)
        if manifest.model_id != model_id:
            raise CorruptData(f"{where} is that of pack {manifest.model_id}", reason="MANIFEST_INVALID")
        return Pack(manifest, document, folder, tenant, self._checks(manifest, folder))

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

    def _only(self, tenants: Sequence[str]) -> tuple[list[str], str]:
        """Whose the only pack is, and its id."""
        try:
            packs = {tenant: packs_in(self._store, tenant) for tenant in tenants}
        except PremoeError as error:
            raise storage_fault("the list of packs", error, "run premoe pack verify") from error
        tenant = next((one for one in tenants if packs[one]), tenants[-1])
        return [tenant], the_only(packs[tenant], self._store.url)
