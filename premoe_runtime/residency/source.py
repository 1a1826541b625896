"""Ports of the runtime: what it asks of the outside, implemented by the pack reader and by the worker's gRPC client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import Manifest


class ExpertSource(Protocol):
    """Where a model's skeleton files and expert blobs come from. Blocking; safe to call from several threads."""

    def manifest(self) -> Manifest:
        """The pack's checked manifest. Raises NotFound, CorruptData, Unavailable."""
        ...

    def read_file(self, path: str) -> bytes:
        """One skeleton file, digest checked. Raises NotFound, CorruptData, Unavailable."""
        ...

    def fetch(
        self,
        experts: Sequence[ExpertId],
        into: Callable[[ExpertId], memoryview],
        done: Callable[[ExpertId, bool], None],
        cancelled: Callable[[], bool] = lambda: False,
        urgent: Callable[[], bool] = lambda: True,
    ) -> None:
        """Read whole blobs into ``into(expert)`` (writable, ``blob_bytes`` long) and call ``done`` for each.

        ``done(expert, checked)`` is called once per blob, after its last byte, from any thread. ``checked``: the bytes
        are those of the manifest's digest, whoever carried them; otherwise the receiver checks that.
        ``urgent()``: whether somebody waits for them by now; others go first while nobody does.
        Returns early, without error, when ``cancelled()`` turns true. Raises NotFound, CorruptData, Unavailable.
        """
        ...
