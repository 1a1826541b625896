"""A file of JSON lines that only grows, each with a key: what a stopped run leaves to the next one.

A line is written whole and reaches the disk before the next piece of work begins, so what a kill leaves is every
finished piece and at most one torn line, which is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from premoe_runtime.storage.failures import mapped_errors


class Lines:
    """``found``: what the file holds, by key; the last line of a key counts. Raises InvalidInput, Exhausted or
    Unavailable like any write to a disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with mapped_errors(str(path)):
            path.touch()
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(path, whole)
        self.found: dict[str, dict[str, Any]] = dict(filter(None, map(_decode, data[:whole].splitlines())))

    def put(self, key: str, document: Mapping[str, Any]) -> None:
        """Keep what JSON can hold."""
        self.found[key] = dict(document)
        with mapped_errors(str(self._path)), self._path.open("ab") as file:
            file.write(json.dumps({"key": key, **document}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _decode(line: bytes) -> tuple[str, dict[str, Any]] | None:
    """None for a line that a person or a full disk has spoilt."""
    try:
        document = json.loads(line)
        return str(document.pop("key")), document
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
