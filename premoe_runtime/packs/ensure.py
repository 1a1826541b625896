"""Packing as something to be ensured: the same call any number of times, from several places, ends with one pack.

What was packed from where is recorded under ``sources/``. For a checkpoint whose name pins its content (a commit of a
hub) the record answers without a look at the source, which may be gone or out of reach by then.
"""

from __future__ import annotations

import json
import re

import blake3

from premoe_runtime.formats.errors import Conflict, InvalidInput, PremoeError
from premoe_runtime.formats.ids import DIGEST_PREFIX, bare_digest
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.hub import HUB
from premoe_runtime.packs.progress import Progress
from premoe_runtime.packs.source import PACKER_VERSION, check_tokenizer, open_source
from premoe_runtime.packs.staging import Staging, is_complete
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import Store

_COMMIT = re.compile(r"[0-9a-f]{40}")


def ensure_pack(
    source: str, store: Store, *, revision: str = "", expect: str = "", progress: Progress | None = None
) -> Manifest:
    """The manifest of the pack of ``source`` in ``store``, which is written unless it is there.

    ``revision`` is the commit of an ``hf://`` source. ``expect`` is the id that the pack must have: when such a pack
    is there, nothing else is looked at. Raises what ``open_source`` and ``write_pack`` raise, InvalidInput for a
    revision of anything but a hub, and Conflict (MODEL_ID_MISMATCH) when the content is another than expected.
    """
    expected = bare_digest(expect)
    if expected and (manifest := is_complete(store, expected)) is not None:
        return manifest
    pinned = _pinned(store, source, revision)
    manifest = pinned.published() if pinned else None
    if manifest is None:
        manifest = _packed(_with_revision(source, revision), store, progress)
        if pinned:
            pinned.mark(manifest)
    if expected and manifest.model_id != expected:
        raise Conflict(
            f"{source} packs to {DIGEST_PREFIX}{manifest.model_id}, but {expected[:16]}… is expected; "
            "correct the expected id, or the source",
            reason="MODEL_ID_MISMATCH",
        )
    return manifest


def recorded_pack(store: Store, source: str, revision: str) -> Manifest | None:
    """The pack of a commit that is there already, whatever state its files are in. Raises what the store raises."""
    pinned = _pinned(store, source, revision)
    return pinned.packed() if pinned else None


def _packed(source: str, store: Store, progress: Progress | None) -> Manifest:
    opened = open_source(source)
    check_tokenizer(opened)
    try:
        return write_pack(opened, store, progress).manifest
    except PremoeError:
        # Somebody else may have published the same pack meanwhile and cleared what we had staged.
        published = Staging(store, opened.key).published()
        if published is None:
            raise
        return published


def _with_revision(source: str, revision: str) -> str:
    if not revision:
        return source
    if not source.startswith(HUB):
        raise InvalidInput(f"{source}: only hf:// sources have a revision", reason="REVISION_INVALID")
    if "@" in source.removeprefix(HUB):
        raise InvalidInput(f"{source}: the revision is given twice", reason="REVISION_INVALID")
    return f"{source}@{revision}"


def _pinned(store: Store, source: str, revision: str) -> Staging | None:
    """Where the pack of a commit is recorded; None for a source whose content may change under its name."""
    if not source.startswith(HUB) or not _COMMIT.fullmatch(revision):
        return None
    text = json.dumps([PACKER_VERSION, source.rstrip("/"), revision], separators=(",", ":"))
    return Staging(store, blake3.blake3(text.encode()).hexdigest()[:32])
