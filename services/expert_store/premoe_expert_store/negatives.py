"""What was found missing or wrong a moment ago, so that it is not looked for again by everybody."""

from __future__ import annotations

from collections.abc import Callable

from premoe_runtime.formats.errors import PremoeError

FOR_S = 1.0
MOST = 65_536

Key = tuple[str, str]
"""A pack's folder and a digest: an error is that of one pack's copy."""


class Negatives:
    """Errors by blob, for a second each. ``clock``: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._errors: dict[Key, tuple[float, PremoeError]] = {}

    def add(self, key: Key, error: PremoeError) -> None:
        if len(self._errors) >= MOST:
            self._errors.clear()
        self._errors[key] = (self._clock() + FOR_S, error)

    def check(self, key: Key) -> None:
        """Raise what was found of a blob, another instance for each who asks."""
        until, error = self._errors.get(key, (0.0, None))
        if error is None:
            return
        if self._clock() < until:
            raise type(error)(str(error), reason=error.reason)
        del self._errors[key]
