"""The names of blobs' files, and what a folder of them holds. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from premoe_runtime.formats.errors import CorruptData

BLOBS = "blobs"
ARRIVING = "arriving"

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Found(NamedTuple):
    """A file of the folder: its path below it, its size, and when it was last used (seconds since 1970)."""

    path: str
    num_bytes: int
    used: float


class Kept(NamedTuple):
    """A blob's file."""

    num_bytes: int
    used: float


def blob_path(digest: str) -> str:
    """Where a blob lies below the cache's folder. Raises CorruptData for what is no digest."""
    if not _DIGEST.fullmatch(digest):
        raise CorruptData(f"{digest[:80]!r} is no digest of a blob; pack the model again", reason="MANIFEST_INVALID")
    return f"{BLOBS}/{digest[:2]}/{digest}"


def rebuild(found: Iterable[Found]) -> tuple[dict[str, Kept], list[str]]:
    """Blobs by digest, least lately used first, and the paths of files that are none: of other names, or empty.

    A file gets its name when it is whole, so that a torn one has none; a machine that lost its power may leave an
    empty one, and wrong bytes under a right name are found when it is first used.
    """
    kept: dict[str, Kept] = {}
    foreign: list[str] = []
    for one in sorted(found, key=lambda one: one.used):
        digest = one.path.rpartition("/")[2]
        if one.num_bytes and _DIGEST.fullmatch(digest) and one.path == blob_path(digest):
            kept[digest] = Kept(one.num_bytes, one.used)
        else:
            foreign.append(one.path)
    return kept, foreign
