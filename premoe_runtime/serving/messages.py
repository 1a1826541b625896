"""What the serving loop is told by the worker's other threads: values, and futures for the answers."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from premoe_runtime.serving.reports import Residency, ServingStats, SwapReport
from premoe_runtime.serving.requests import KeptPattern, OpenRequest


@dataclass(frozen=True, slots=True)
class Generate:
    """Answer a request. Refusals come as its only event."""

    request: OpenRequest


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """End a request wherever it is; unknown or ended ones are passed over."""

    request: OpenRequest


@dataclass(frozen=True, slots=True)
class LoadPattern:
    """Make a pattern resident in its turn and pin its blobs in host memory."""

    pattern: KeptPattern
    done: Future[SwapReport]


@dataclass(frozen=True, slots=True)
class PreloadPattern:
    """Make a pattern resident if nobody needs the room; answers ``None`` if somebody does."""

    pattern: KeptPattern
    done: Future[SwapReport | None]


@dataclass(frozen=True, slots=True)
class UnloadPattern:
    """Take the pin off again."""

    pattern_id: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Refuse new requests; done once none is left."""

    done: Future[None]


@dataclass(frozen=True, slots=True)
class Look:
    """Say what lies where, and the counters."""

    done: Future[tuple[Residency, ServingStats]]


@dataclass(frozen=True, slots=True)
class CheckBytes:
    """Check every resident byte, on the device and in host memory, and the books."""

    done: Future[None]


@dataclass(frozen=True, slots=True)
class Close:
    """Cancel everything and end."""


Message = Generate | CancelRequest | LoadPattern | PreloadPattern | UnloadPattern | Drain | Look | CheckBytes | Close
