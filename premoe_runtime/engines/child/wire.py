"""What goes over the pipe between a process and the engine that it started: commands one way, reports the other.

Values are pickled. That is safe here, and only here: the pipe has no name, it is inherited by a child that runs the
same code for the same user, and neither end ever reads from anything else.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from premoe_runtime.engines.base import Command, Report, RequestLimits


@dataclass(frozen=True, slots=True)
class Ready:
    """The child's first message: its engine is loaded."""

    limits: RequestLimits


@dataclass(frozen=True, slots=True)
class Failed:
    """Or this one: what loading raised."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class CloseEngine:
    """The parent's last message."""


Message = Command | CloseEngine | Report | Ready | Failed


def send(connection: Connection, message: object) -> None:
    """Raises OSError once the other end is gone."""
    connection.send_bytes(encode(message))


def receive(connection: Connection) -> Any:
    """The next message. Raises EOFError or OSError once the other end is gone."""
    return pickle.loads(connection.recv_bytes())


def encode(message: object) -> bytes:
    """Pickled; an exception that would not come out on the other side becomes a RuntimeError with its text."""
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        return _plain(obj) if isinstance(obj, BaseException) else NotImplemented


def _plain(error: BaseException) -> tuple[Callable[[str], BaseException], tuple[str]] | Any:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError, (f"{type(error).__name__}: {error}",)
    return NotImplemented
