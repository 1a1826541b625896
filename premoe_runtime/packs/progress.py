"""What packing and verifying report while they run."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives bytes done out of a total and the name of what is being worked on."""

    def total(self, num_bytes: int) -> None: ...

    def stage(self, what: str) -> None: ...

    def advance(self, num_bytes: int) -> None: ...


class Silent:
    """Reports nothing."""

    def total(self, num_bytes: int) -> None: ...

    def stage(self, what: str) -> None: ...

    def advance(self, num_bytes: int) -> None: ...
