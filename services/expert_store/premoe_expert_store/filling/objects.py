"""Ranges of objects, a bounded number at a time: long ones cut, neighbours that wait together joined."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from premoe_expert_store.filling.arrival import Sorted
from premoe_runtime.formats.errors import PremoeError
from premoe_runtime.storage import READ_PART_BYTES, Store

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Reading:
    """A range that waits, or is read. ``result``: what ``take`` says of it, or what the store raised."""

    path: str
    offset: int
    length: int
    take: Callable[[memoryview], Sorted]
    result: asyncio.Future[Sorted]
    alone: bool = False
    started: bool = False
    end: int = field(init=False)

    def __post_init__(self) -> None:
        self.end = self.offset + self.length

    def settle(self, answer: Sorted | BaseException) -> None:
        """It is over; ``take`` is not called any more."""
        if self.result.done():
            return
        if isinstance(answer, BaseException):
            self.result.set_exception(answer)
        else:
            self.result.set_result(answer)


class ObjectReader:
    """Belongs to one event loop. Urgent ranges go before others; else who came first."""

    def __init__(self, store: Store, lanes: int) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="objects")
        self._free = lanes
        self._urgent: deque[Reading] = deque()
        self._others: deque[Reading] = deque()
        self._starts: dict[tuple[str, int], Reading] = {}
        self._woken = False

    def read(
        self, path: str, offset: int, length: int, take: Callable[[memoryview], Sorted], *, urgent: bool
    ) -> Reading:
        """Read a range of an object; ``take`` gets its bytes on the reading thread, while they are in its cache."""
        item = Reading(path, offset, length, take, asyncio.get_running_loop().create_future())
        self._wait(item, urgent)
        return item

    def withdraw(self, item: Reading) -> bool:
        """Not wanted any more. Whether it is still being read, and ``take`` may yet be called."""
        if item.started:
            return not item.result.done()
        item.result.cancel()
        if self._starts.get((item.path, item.offset)) is item:
            del self._starts[item.path, item.offset]
        return False

    def hasten(self, path: str, start: int, end: int) -> None:
        """Somebody waits now for what waits of these bytes of an object."""
        urgent = [one for one in self._others if one.path == path and start <= one.offset < end and not one.started]
        self._urgent.extend(urgent)

    async def run(self, work: Callable[[], T]) -> T:
        """Other reads of the store, outside the lanes' order."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _wait(self, item: Reading, urgent: bool) -> None:
        (self._urgent if urgent else self._others).append(item)
        self._starts[item.path, item.offset] = item
        if not self._woken:
            # After whoever asks in this turn of the loop has asked: neighbours are to be seen.
            self._woken = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._woken = False
        while self._free and (head := self._next()) is not None:
            items = [head] if head.alone else list(self._joined(head))
            for item in items:
                item.started = True
                self._starts.pop((item.path, item.offset), None)
            self._free -= 1
            asyncio.get_running_loop().create_task(self._read(items))

    def _next(self) -> Reading | None:
        for queue in (self._urgent, self._others):
            while queue:
                item = queue.popleft()
                if not item.started and not item.result.done():
                    return item
        return None

    def _joined(self, head: Reading) -> Iterator[Reading]:
        """``head`` and what follows it without a gap, as far as one range goes."""
        last = head
        while True:
            yield last
            after = self._starts.get((last.path, last.end))
            if after is None or after.alone or after.started or after.result.done():
                return
            if after.end - head.offset > READ_PART_BYTES:
                return
            last = after

    async def _read(self, items: list[Reading]) -> None:
        def work() -> list[Sorted]:
            start = items[0].offset
            data = self._store.read_range(items[0].path, start, items[-1].end - start)
            return [item.take(data[item.offset - start : item.end - start]) for item in items]

        try:
            answers = await self.run(work)
        except PremoeError as error:
            self._failed(items, error)
        except Exception as error:
            for item in items:
                item.settle(error)
        except BaseException:
            for item in items:
                item.settle(asyncio.CancelledError())
            raise
        else:
            for item, answer in zip(items, answers, strict=True):
                item.settle(answer)
        finally:
            self._free += 1
            self._dispatch()

    def _failed(self, items: list[Reading], error: PremoeError) -> None:
        """An error stays with its blob: what was read together is tried one by one."""
        for item in items:
            if len(items) == 1 or item.result.done():
                item.settle(error)
            else:
                item.alone, item.started = True, False
                self._wait(item, urgent=True)
