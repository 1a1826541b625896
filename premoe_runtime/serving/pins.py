"""Loaded patterns: their blobs are kept in host memory until they are unloaded."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.serving.fetches import Delivered, Fetches, FetchOver, Need
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.requests import KeptPattern


@dataclass(eq=False, slots=True)
class Stock:
    """A loaded pattern whose blobs are still to come into host memory."""

    pattern_id: str
    need: Need
    report: SwapReport
    done: Future[SwapReport]


class Pins:
    """Owned by the serving loop."""

    def __init__(self, fetches: Fetches) -> None:
        self._fetches = fetches
        self._host = fetches.host
        self._loaded: dict[str, frozenset[ExpertId]] = {}
        self._stocks: list[Stock] = []

    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def needs(self) -> list[Need]:
        return [stock.need for stock in self._stocks]

    def unanswered(self) -> list[Future[SwapReport]]:
        return [stock.done for stock in self._stocks]

    def add(self, pattern: KeptPattern) -> None:
        """Idempotent. Raises Exhausted when host memory is too small."""
        if pattern.id not in self._loaded:
            self._host.pin(pattern.experts)
            self._loaded[pattern.id] = pattern.experts

    def remove(self, pattern_id: str) -> None:
        """Does nothing for a pattern without a pin. What was still to come for it no longer is."""
        self._host.unpin(self._loaded.pop(pattern_id, frozenset()))
        for stock in [stock for stock in self._stocks if stock.pattern_id == pattern_id]:
            self._end(stock)
            stock.done.set_result(stock.report)

    def complete(self, pattern: KeptPattern, swapped: Future[SwapReport], done: Future[SwapReport]) -> None:
        """Its swap is over: what passed through host memory without staying is to come again, then it is loaded."""
        if (error := swapped.exception()) is not None:
            self.remove(pattern.id)
            done.set_exception(error)
        elif pattern.id not in self._loaded:
            done.set_result(swapped.result())
        else:
            self._stocks.append(Stock(pattern.id, Need(pattern.experts), swapped.result(), done))

    def fetch_what_is_lacking(self, now: float) -> None:
        for stock in list(self._stocks):
            lacking = [expert for expert in stock.need.experts if expert not in self._host]
            if lacking:
                self._fetches.update(stock.need, lacking, first=True, context=None, now=now)
            else:
                self._end(stock)
                stock.done.set_result(stock.report)

    def note_delivered(self, message: Delivered) -> None:
        """A blob that no waiting pattern holds: pins keep it if it is loaded."""
        self._fetches.arrived(message, wanted=False)

    def note_fetch_failed(self, message: FetchOver, error: Exception) -> None:
        for stock in [stock for stock in self._stocks if stock.need is message.fetch.need]:
            self._end(stock)
            self.remove(stock.pattern_id)
            stock.done.set_exception(error)

    def _end(self, stock: Stock) -> None:
        self._stocks.remove(stock)
        self._fetches.drop(stock.need)
