"""The keys in force: read again when their file changes, and told from what a request shows."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from pathlib import Path

from premoe_servicekit.followed import Followed

from premoe_gateway.access.keys import Key, KeyFile, digest, read_keys
from premoe_runtime.formats.errors import InvalidInput

MISSING = "this gateway asks for an API key; send it as `Authorization: Bearer KEY`"
WRONG = "the API key is not one of this gateway's; it may have been revoked"


class Keyring:
    """The keys of a file. Raises InvalidInput (KEYS_INVALID) when the file is no good at the start."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = Followed("keys file", (path,), lambda: read_keys(path), reason="KEYS_INVALID", clock=clock)

    @property
    def keys(self) -> tuple[Key, ...]:
        """Those in force."""
        return self._keys().keys

    @property
    def is_stale(self) -> bool:
        """Whether the file cannot be used as it is now, so that what it said before holds."""
        self._keys()
        return bool(self._file.problem)

    def holder(self, authorization: bytes | None) -> Key:
        """Whose key the header shows. Raises InvalidInput (INVALID_API_KEY).

        Every digest is compared, each in constant time: how long it takes tells nothing of which is near.
        """
        scheme, _, shown = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not shown.strip():
            raise InvalidInput(MISSING, reason="INVALID_API_KEY")
        wanted = digest(shown.strip())
        found = None
        for key in self._keys().keys:
            if hmac.compare_digest(key.sha256, wanted):
                found = key
        if found is None:
            raise InvalidInput(WRONG, reason="INVALID_API_KEY")
        return found

    def _keys(self) -> KeyFile:
        return self._file.current()
