"""The live pointer of a model's weights: the pattern set that answers, and those that did before it.

``live/<weights id>.json`` holds both, so that going live and rolling back are one atomic write each. Pointers of older
versions have no history; older versions read only ``set_id``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from premoe_runtime.formats.documents import ObjectId, parse_document
from premoe_runtime.formats.errors import CorruptData, NotFound
from premoe_runtime.formats.ids import SetId

LIVE_FOLDER = "live"
MOST_VERSIONS = 16
"""Sets that a pointer remembers, the live one among them."""

Time = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
"""Seconds since 1970."""


class Version(BaseModel):
    """A set that is live or was before."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    set_id: ObjectId
    since: Time | None = None
    """When it last went live, where that is known."""
    withdrawn: bool = False
    """Whether it was rolled back from: rolling back passes it over, unless it is named."""


class LivePointer(BaseModel):
    """``live/<weights id>.json``. ``versions``: each set once, the one that was made live last first."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    set_id: ObjectId
    versions: tuple[Version, ...] = ()

    @property
    def history(self) -> tuple[Version, ...]:
        """``versions``, with the live set among them also where an older version of PreMoE wrote the pointer."""
        known = any(version.set_id == self.set_id for version in self.versions)
        return self.versions if known else (Version(set_id=self.set_id), *self.versions)

    def followed_by(self, set_id: str, now: float) -> LivePointer:
        """The pointer once ``set_id`` has gone live at ``now``; the same one when it is live already."""
        if set_id == self.set_id:
            return self
        others = (version for version in self.history if version.set_id != set_id)
        return LivePointer(set_id=set_id, versions=(Version(set_id=set_id, since=now), *others)[:MOST_VERSIONS])

    def rolled_back(self, now: float, to: str | None = None) -> LivePointer:
        """The pointer once the version before, or the one named ``to``, is live again.

        Versions after it are withdrawn, so that rolling back twice goes two back. Raises NotFound.
        """
        versions = self.history
        here = next(index for index, version in enumerate(versions) if version.set_id == self.set_id)
        wanted = (
            index
            for index, version in enumerate(versions)
            if index != here and (version.set_id == to if to else index > here and not version.withdrawn)
        )
        if (target := next(wanted, None)) is None:
            what = f"{to} was not live before" if to else "no other set was live before"
            raise NotFound(
                f"set {self.set_id[:16]} is live, and {what}; make any set live with `premoe patterns set-live`",
                reason="NO_EARLIER_SET",
            )
        set_id = versions[target].set_id
        later = (version.model_copy(update={"withdrawn": True}) for version in versions[:target])
        turned = (*later, Version(set_id=set_id, since=now), *versions[target + 1 :])
        return LivePointer(set_id=set_id, versions=turned)

    def encode(self) -> bytes:
        return self.model_dump_json(exclude_defaults=True).encode()

    @classmethod
    def decode(cls, data: bytes, *, where: str = "live pointer") -> LivePointer:
        """Raises CorruptData."""
        cure = "write it anew with `premoe patterns set-live`"
        return parse_document(cls, data, where=where, reason="LIVE_SET_BROKEN", cure=cure)

    @classmethod
    def load(cls, get: Callable[[str], bytes], weights_id: str) -> LivePointer:
        """Read the pointer of these weights through ``get``. Raises NotFound, CorruptData."""
        path = live_path(weights_id)
        return cls.decode(get(path), where=path)


def live_path(weights_id: str) -> str:
    """Key of the pointer to the live set of these weights."""
    return f"{LIVE_FOLDER}/{weights_id}.json"


def go_live(
    get: Callable[[str], bytes], put: Callable[[str, bytes], None], weights_id: str, set_id: str, now: float
) -> SetId | None:
    """Make a set live, remembering the one before, which is returned. A damaged pointer is written anew."""
    before = None
    try:
        before = LivePointer.load(get, weights_id)
    except (NotFound, CorruptData):
        after = LivePointer(set_id=set_id, versions=(Version(set_id=set_id, since=now),))
    else:
        after = before.followed_by(set_id, now)
    if after != before:
        put(live_path(weights_id), after.encode())
    return None if before is None else SetId(before.set_id)
