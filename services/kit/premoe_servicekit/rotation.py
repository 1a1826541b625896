"""Channels whose client certificate may change: gRPC for Python cannot renew one in place (grpc/grpc#41779).

A rotating channel looks like any other. Once the TLS files have changed, the next call opens a new channel inside;
the old one is closed when the last of its calls has ended, so that none of them fails.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc

from premoe_servicekit.tls import Material, Tls

C = TypeVar("C")


@dataclass(slots=True, eq=False)
class _Open(Generic[C]):
    """A channel, what it was opened with, and how many of its calls run."""

    channel: C
    material: Material
    calls: int = 0


@dataclass(slots=True, eq=False)
class _Rotation(Generic[C]):
    """The channel for new calls, and older ones whose calls still run. Safe from any thread.

    ``close`` is called from a thread that makes a call, never from one of gRPC's own.
    """

    tls: Tls
    open: Callable[[grpc.ChannelCredentials], C]
    close: Callable[[C], None]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _newest: _Open[C] | None = None
    _older: list[_Open[C]] = field(default_factory=list)

    def take(self) -> _Open[C]:
        """The channel for one more call, which counts until ``give_back``."""
        with self._lock:
            taken = self._current()
            taken.calls += 1
            idle = [old for old in self._older if not old.calls]
            self._older = [old for old in self._older if old.calls]
        for old in idle:
            self.close(old.channel)
        return taken

    def give_back(self, taken: _Open[C]) -> None:
        with self._lock:
            taken.calls -= 1

    def current(self) -> C:
        """The channel for new calls."""
        with self._lock:
            return self._current().channel

    def all(self) -> list[C]:
        """Every channel that is open, for closing them."""
        with self._lock:
            newest = [] if self._newest is None else [self._newest]
            return [opened.channel for opened in (*newest, *self._older)]

    def _current(self) -> _Open[C]:
        material = self.tls.material()
        if self._newest is None or self._newest.material is not material:
            if self._newest is not None:
                self._older.append(self._newest)
            self._newest = _Open(self.open(material.channel_credentials()), material)
        return self._newest


class _Method(Generic[C]):
    """A method of a stub: bound anew whenever the channel behind it is another one."""

    def __init__(self, rotation: _Rotation[C], kind: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._rotation = rotation
        self._kind = kind
        self._arguments = arguments
        self._options = options
        self._bound: tuple[C, Any] | None = None

    def bound(self, channel: C) -> Any:
        found = self._bound
        if found is None or found[0] is not channel:
            found = self._bound = (channel, getattr(channel, self._kind)(*self._arguments, **self._options))
        return found[1]


class _AioMethod(_Method[grpc.aio.Channel]):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        taken = self._rotation.take()
        try:
            call = self.bound(taken.channel)(*arguments, **options)
            call.add_done_callback(lambda done: self._rotation.give_back(taken))
        except BaseException:
            self._rotation.give_back(taken)
            raise
        return call


class _BlockingMethod(_Method[grpc.Channel]):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self._kind in ("unary_stream", "stream_stream"):
            return self._until_done(lambda method: method(*arguments, **options))
        taken = self._rotation.take()
        try:
            return self.bound(taken.channel)(*arguments, **options)
        finally:
            self._rotation.give_back(taken)

    def future(self, *arguments: Any, **options: Any) -> Any:
        return self._until_done(lambda method: method.future(*arguments, **options))

    def _until_done(self, begin: Callable[[Any], Any]) -> Any:
        taken = self._rotation.take()
        try:
            call = begin(self.bound(taken.channel))
            call.add_done_callback(lambda done: self._rotation.give_back(taken))
        except BaseException:
            self._rotation.give_back(taken)
            raise
        return call


class RotatingChannel(grpc.aio.Channel):
    """An asyncio channel; use it from one event loop."""

    def __init__(self, tls: Tls, open_channel: Callable[[grpc.ChannelCredentials], grpc.aio.Channel]) -> None:
        self._closing: set[asyncio.Task[None]] = set()
        self._rotation: _Rotation[grpc.aio.Channel] = _Rotation(tls, open_channel, self._close_soon)

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _AioMethod(self._rotation, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return _AioMethod(self._rotation, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return _AioMethod(self._rotation, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return _AioMethod(self._rotation, "stream_stream", arguments, options)

    async def __aenter__(self) -> RotatingChannel:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        for channel in self._rotation.all():
            await channel.close(grace)
        await asyncio.gather(*self._closing)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._rotation.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._rotation.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._rotation.current().channel_ready()

    def _close_soon(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.ensure_future(channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class BlockingRotatingChannel(grpc.Channel):
    """A channel for threads, which may share it."""

    def __init__(self, tls: Tls, open_channel: Callable[[grpc.ChannelCredentials], grpc.Channel]) -> None:
        self._rotation: _Rotation[grpc.Channel] = _Rotation(tls, open_channel, lambda channel: channel.close())

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _BlockingMethod(self._rotation, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return _BlockingMethod(self._rotation, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return _BlockingMethod(self._rotation, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return _BlockingMethod(self._rotation, "stream_stream", arguments, options)

    def __enter__(self) -> BlockingRotatingChannel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        for channel in self._rotation.all():
            channel.close()

    def subscribe(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False
    ) -> None:
        self._rotation.current().subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        for channel in self._rotation.all():
            channel.unsubscribe(callback)
