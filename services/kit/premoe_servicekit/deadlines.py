"""The deadline of the work in hand: what is left of the incoming RPC bounds everything it causes.

gRPC for Python passes deadlines on only when told to, so the server notes the incoming one in a context variable and
the client interceptors read it. Context variables follow ``await``, ``asyncio.create_task`` and ``asyncio.to_thread``;
for other threads see ``carried``.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar("premoe_deadline", default=None)


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Bound the work inside by ``seconds`` from now; ``None`` adds no bound. An outer, shorter one stays in force."""
    token = _deadline.set(_deadline.get() if seconds is None else time.monotonic() + bounded(seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def no_deadline() -> Iterator[None]:
    """No bound on the work inside: what several callers wait for must not end with the deadline of one of them."""
    token = _deadline.set(None)
    try:
        yield
    finally:
        _deadline.reset(token)


def remaining() -> float | None:
    """Seconds left of the deadline in force, at least 0; ``None`` without one."""
    end = _deadline.get()
    return None if end is None else max(0.0, end - time.monotonic())


def bounded(seconds: float) -> float:
    """``seconds``, or what is left of the deadline in force when that is less."""
    left = remaining()
    return seconds if left is None else min(seconds, left)


def carried(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` under the caller's deadline and span, for threads that the caller's context does not reach.

    May be called many times and from several threads at once: every call runs in its own copy of the context.
    """
    context = contextvars.copy_context()

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.copy().run(function, *args, **kwargs)

    return call
