"""The expert store and Redis are killed, or stopped, and started again; when, is kept."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from dataclasses import dataclass
from typing import Literal

from premoe_local.processes import Child, wait_serving
from support.servers import RedisServer, start_again, stop

START_S = 120.0
Victim = Literal["store", "redis"]


@dataclass(slots=True)
class Fault:
    """``again``: when it served again; infinite until then. CLOCK_MONOTONIC."""

    victim: Victim
    killed: float
    again: float = float("inf")


class Faults:
    """Both victims of one mesh. ``close`` stops the Redis that was started last."""

    def __init__(self, store: Child, redis: RedisServer) -> None:
        self._store, self.redis = store, redis
        self.known: list[Fault] = []

    async def inject(self, victim: Victim, down_s: float, number: signal.Signals) -> None:
        """End it by a signal, wait, start again, wait until it serves. Raises what a start raises."""
        fault = Fault(victim, time.monotonic())
        self.known.append(fault)
        await asyncio.to_thread(self._end, victim, number)
        await asyncio.sleep(down_s)
        await asyncio.to_thread(self._start, fault)

    def mend(self) -> None:
        """Start what is not there again. In a terminal Ctrl-C reaches Redis, too."""
        for fault in self.known:
            if fault.again == float("inf"):
                self._start(fault)
        if self.redis.process.poll() is not None:
            self.redis = start_again(self.redis)

    def close(self) -> None:
        stop(self.redis.process)

    def _end(self, victim: Victim, number: signal.Signals) -> None:
        if victim == "redis":
            self.redis.process.send_signal(number)
            self.redis.process.wait()
        elif number is signal.SIGKILL:
            self._store.kill()
        else:
            self._store.stop()

    def _start(self, fault: Fault) -> None:
        if fault.victim == "store":
            self._store.start_again()
            wait_serving(self._store, self._store.wait_ready(START_S)["address"], START_S)
        else:
            self.redis = start_again(self.redis)
        fault.again = time.monotonic()


def schedule(source: random.Random, seconds: float, every_s: float) -> list[tuple[float, Victim, float]]:
    """When, after the beginning, who goes, and for how long: each victim once in ``every_s``, and at least once."""
    count = max(1, round(seconds / every_s))
    victims: list[Victim] = ["store", "redis"] * count
    source.shuffle(victims)
    # The last ones come early enough for load behind them.
    width = 0.8 * seconds / len(victims)
    return [
        ((number + source.uniform(0.2, 0.8)) * width, victim, source.uniform(0.0, min(6.0, width / 4)))
        for number, victim in enumerate(victims)
    ]
