"""Asks workers which tasks they keep resident, beside the reconciles: workers that do not answer hold nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from premoe_operator.decide.observed import WorkerPreload, WorkersAsked
from premoe_operator.kube.objects import ModelKey

RARELY_S = 300.0
"""Workers repair what they keep resident themselves; the status only tells."""
MODELS_AT_ONCE = 8


class Workers(Protocol):
    """The workers behind a Service's name."""

    async def preloads(self, host: str, port: int, *, encrypted: bool) -> tuple[WorkerPreload, ...]:
        """One entry for each worker, or one for all when the name stands for nobody. Never raises."""
        ...


class PreloadWatch:
    """One task for each PrunedModel that has somebody to ask; for one event loop.

    ``changed`` is called for a model whose workers say something new. Those that keep everything are asked every
    ``rarely_s``, others after ``soon_s``, then less and less often while they say the same.
    """

    def __init__(
        self, workers: Workers, changed: Callable[[ModelKey], None], *, soon_s: float, rarely_s: float = RARELY_S
    ) -> None:
        self._workers = workers
        self._changed = changed
        self._soon_s = soon_s
        self._rarely_s = rarely_s
        self._few = asyncio.Semaphore(MODELS_AT_ONCE)
        self._asking: dict[ModelKey, tuple[WorkersAsked, asyncio.Task[None]]] = {}
        self._answers: dict[ModelKey, tuple[WorkerPreload, ...]] = {}

    async def close(self) -> None:
        """Ask nobody any more."""
        tasks = [task for _, task in self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._asking.clear()

    def look(self, model: ModelKey, asked: WorkersAsked | None) -> tuple[WorkerPreload, ...] | None:
        """What those workers said last; None before they said anything. From now on they are asked, or nobody."""
        before = self._asking.get(model)
        if before is not None and before[0] != asked:
            before[1].cancel()
            del self._asking[model]
            self._answers.pop(model, None)
        if asked is not None and model not in self._asking:
            self._asking[model] = (asked, asyncio.create_task(self._ask(model, asked)))
        return self._answers.get(model)

    async def _ask(self, model: ModelKey, asked: WorkersAsked) -> None:
        pause_s = self._soon_s
        while True:
            async with self._few:
                found = await self._workers.preloads(asked.host, asked.port, encrypted=asked.encrypted)
            if found == self._answers.get(model):
                pause_s = min(2 * pause_s, self._rarely_s)
            else:
                pause_s = self._soon_s
                self._answers[model] = found
                self._changed(model)
            await asyncio.sleep(self._rarely_s if is_done(found, asked.tasks) else pause_s)


def is_done(found: Sequence[WorkerPreload], tasks: Sequence[str]) -> bool:
    """Whether every worker keeps all tasks resident, so that there is no better news to wait for."""
    return all(worker.has_answered and set(tasks) <= set(worker.done) for worker in found)
