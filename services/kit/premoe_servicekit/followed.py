"""What some files say, read again when they change: certificates, keys, lists of workers.

Kubernetes swaps the files of a mounted Secret or ConfigMap, people edit theirs: what lies there for a moment may be
half of it. At the start that is refused; later, what was read last stays in force until something good lies there.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from premoe_runtime.formats.errors import InvalidInput

log = logging.getLogger(__name__)

T = TypeVar("T")

CHECK_EVERY_S = 1.0
"""How soon a change is noticed; one ``stat`` call a file."""

_Stamp = tuple[tuple[int, int, int], ...]


class Followed(Generic[T]):
    """The value of ``read``, which looks at ``paths`` and raises InvalidInput. Safe from any thread.

    ``what`` names the files in the log. ``reason`` is that of a file that cannot be read.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        read: Callable[[], T],
        *,
        reason: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._paths, self._read, self._reason, self._clock = what, tuple(paths), read, reason, clock
        self._lock = threading.Lock()
        self.problem = ""
        """Why what lies there now is not in force; empty when it is."""
        self._stamp = self._stat()
        self._value = read()
        self._checked = clock()

    def current(self) -> T:
        """What is in force. The same object until the files change to something else that is good."""
        with self._lock:
            now = self._clock()
            if now - self._checked >= CHECK_EVERY_S:
                self._checked = now
                self._renew()
            return self._value

    def _renew(self) -> None:
        try:
            stamp = self._stat()
            value = self._value if stamp == self._stamp else self._read()
        except InvalidInput as error:
            # Half of a swap, most likely; the next look finds the rest.
            if self.problem != str(error):
                log.warning("%s changed, but cannot be used, so what was there before stays: %s", self._what, error)
            self.problem = str(error)
            return
        self.problem = ""
        self._stamp = stamp
        if value != self._value:
            self._value = value
            log.info("%s changed, and what is there now is in force", self._what)

    def _stat(self) -> _Stamp:
        stamps = []
        for path in self._paths:
            try:
                found = os.stat(path)
            except OSError as error:
                raise self.unreadable(path, error) from None
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
        return tuple(stamps)

    def unreadable(self, path: Path, error: OSError) -> InvalidInput:
        return InvalidInput(f"{self._what} {path} cannot be read: {error.strerror}", reason=self._reason)
