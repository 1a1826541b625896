"""Where a checkpoint is written to: a place that is empty, and one beside it that nobody takes for a checkpoint.

``…/NAME`` appears whole, ``…/.NAME.partial/`` holds the finished files of a run that was stopped, and what they belong
to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from premoe_runtime.formats.errors import Conflict, InvalidInput, NotFound
from premoe_runtime.packs.staging import only_one
from premoe_runtime.storage import Store, open_store

_KEY, _PUBLISHING = "key", "publishing"


@dataclass(frozen=True, slots=True)
class Destination:
    """``name`` in ``store``, which is the folder that it lies in."""

    store: Store
    name: str

    @classmethod
    def at(cls, url: str) -> Self:
        """Raises InvalidInput for what is no folder, or has none around it."""
        whole = open_store(url)
        if whole.local_root is not None:
            folder = whole.local_root.resolve()
            if folder.exists() and not folder.is_dir():
                raise InvalidInput(f"{url} is a file; give a folder that is empty or not there", reason="DESTINATION")
            outside, name = folder.parent.as_uri(), folder.name
        else:
            outside, _, name = whole.url.rpartition("/")
        if whole.url.startswith("memory:") or not name or "://" not in outside:
            raise InvalidInput(
                f"{url}: give a folder, file:///folder or s3://bucket/folder to write to", reason="DESTINATION"
            )
        return cls(open_store(outside), name)

    def check_free(self, key: str) -> None:
        """Raise Conflict (DESTINATION) where something is already that no stopped run of this export left."""
        if self.store.list_names(self.name) and self._read(_PUBLISHING) != key:
            raise Conflict(f"{self.url} is not empty; give a folder that is empty or not there", reason="DESTINATION")

    @property
    def url(self) -> str:
        return self.store.at(self.name)

    def staging(self, path: str) -> str:
        """Where a file is staged."""
        return f"{self._partial}/files/{path}"

    def staged_bytes(self) -> int:
        return sum(info.size for info in self.store.list(f"{self._partial}/files"))

    @contextmanager
    def staged(self, key: str) -> Iterator[None]:
        """Keep a second writer out, and what another export staged here. Raises Conflict (EXPORT_RUNNING)."""
        with only_one(self.store, self._partial, "exporting to this folder", "EXPORT_RUNNING"):
            if self._read(_KEY) != key:
                self.store.delete_prefix(f"{self._partial}/files")
                self.store.put(f"{self._partial}/{_KEY}", key.encode())
            self.store.sweep(f"{self._partial}/files")
            yield

    def publish(self, key: str, last: str) -> None:
        """Make the staged files visible under their name, ``last`` of them last, and clear the staging area."""
        if self.store.local_root is None:  # elsewhere files move one by one, and that may be stopped, too
            self.store.put(f"{self._partial}/{_PUBLISHING}", key.encode())
        self.store.move_prefix(f"{self._partial}/files", self.name, last=last)
        self.store.delete_prefix(self._partial)

    def _read(self, name: str) -> str:
        try:
            return self.store.get(f"{self._partial}/{name}").decode()
        except NotFound:
            return ""

    @property
    def _partial(self) -> str:
        return f".{self.name}.partial"
