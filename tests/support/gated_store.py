"""A folder as an object store whose reads are counted, wait for a gate, and may fail."""

from __future__ import annotations

import threading
from pathlib import Path

from premoe_runtime.storage import LocalStore

GATE_S = 60.0


class GatedStore(LocalStore):
    """``reads`` are those of expert files: path, offset, length."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[tuple[str, int, int]] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def read_range(self, path: str, offset: int, length: int) -> memoryview:
        self.reads.append((path, offset, length))
        self.gate.wait(GATE_S)
        if self.error is not None:
            raise self.error
        return super().read_range(path, offset, length)

    @property
    def read_bytes(self) -> int:
        return sum(length for _, _, length in self.reads)
