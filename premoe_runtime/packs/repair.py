"""Packing over a pack that is there already: it is read whole, and what is damaged in it is written again."""

from __future__ import annotations

from premoe_runtime.formats.errors import Conflict
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs import layout as lay
from premoe_runtime.packs.checkpoint import open_checkpoint
from premoe_runtime.packs.checks import checks_file, piece_checks
from premoe_runtime.packs.material import CheckpointMaterial
from premoe_runtime.packs.place import MANIFEST_FILE, pack_folder
from premoe_runtime.packs.progress import Progress, Silent
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.packs.source import Source
from premoe_runtime.packs.staging import Staging
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.packs.writer import Packer, PackResult, write_pack
from premoe_runtime.storage import Store


def pack_or_repair(source: Source, store: Store, progress: Progress | None = None) -> PackResult:
    """``write_pack``, but a pack of this source that is there already is checked like ``verify_pack`` does.

    Damaged files are written again, each at once and whole; all others are left alone. Raises what ``write_pack``
    raises, and Conflict (SOURCE_CHANGED) when the source no longer gives what the manifest lists.
    """
    progress = progress or Silent()
    staging = Staging(store, source.key)
    manifest = staging.packed()
    if manifest is None:
        return write_pack(source, store, progress)
    reader = PackReader(store, pack_folder(manifest.model_id))
    damaged = sorted({fault.file for fault in verify_pack(reader, progress).faults})
    if MANIFEST_FILE in damaged:  # no packer of ours wrote it
        staging.forget()
        return write_pack(source, store, progress)
    if not damaged:
        staging.clear()
        return PackResult(manifest, reader.url, already_packed=True)
    with staging.locked():
        packer = _packer(source, staging, manifest, progress)
        for file in sorted(damaged, key=lambda file: file == lay.CHECKS_FILE):  # which are of the files' blobs
            if not _write(packer, manifest, reader, file):
                raise Conflict(
                    f"{source.url} no longer gives {file} of pack {reader.url}; remove that folder and pack again",
                    reason="SOURCE_CHANGED",
                )
            store.copy(staging.path(file), reader.path(file))
        staging.clear()
    return PackResult(
        manifest,
        reader.url,
        bytes_read=source.store.bytes_read,
        bytes_written=packer.bytes_written,
        repaired=tuple(damaged),
    )


def _packer(source: Source, staging: Staging, manifest: Manifest, progress: Progress) -> Packer:
    packer = Packer(CheckpointMaterial(source, open_checkpoint(source.store, source.files)), staging, progress)
    packer.layout = manifest.layout
    return packer


def _write(packer: Packer, manifest: Manifest, reader: PackReader, file: str) -> bool:
    """Stage one file of the pack; whether it came out as the manifest lists it."""
    packer.progress.stage(file)
    for layer, described in enumerate(manifest.layers):
        if described.file == file:
            return packer.write_layer(layer, file).digests == described.digests
    if file == lay.CHECKS_FILE:
        return packer.put(file, _checks(manifest, reader)).digest == manifest.checks.digest
    listed = next(one for one in manifest.skeleton if one.path == file)
    if not file.endswith(".safetensors"):
        return packer.write_file(file.removeprefix("skeleton/")) == listed
    shards = lay.skeleton_shards(packer.material.skeleton())
    named = {lay.shard_file(index, len(shards)): shard for index, shard in enumerate(shards)}
    return file in named and packer.write_shard(file, named[file]).digest == listed.digest


def _checks(manifest: Manifest, reader: PackReader) -> bytes:
    """The piece checks of the pack's own blobs, whose digests were right."""
    blob_bytes = manifest.layout.blob_bytes
    tables = [
        [
            piece_checks(reader.store.get_range(reader.path(one.file), one.data_offset + at * one.stride, blob_bytes))
            for at in range(len(one.digests))
        ]
        for one in manifest.layers
    ]
    return checks_file(tables, blob_bytes)
