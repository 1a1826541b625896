"""When a peer is asked again, and when not."""

from __future__ import annotations

import grpc
import pytest
from premoe_dataplane.stopped import Stopped
from premoe_servicekit.errors import to_status
from premoe_worker.adapters.patience import Patience

from premoe_runtime.formats.errors import CorruptData, Exhausted, PremoeError, Unavailable

PATIENCE = Patience(tries=4, pause_s=0.5, longest_pause_s=3.0)
DOWN = Unavailable("down")


class Failed(Exception):
    """A failed call with the status that our servers make of ``error``."""

    def __init__(self, error: PremoeError) -> None:
        self._status = to_status(error)

    def code(self) -> grpc.StatusCode:
        return self._status.code

    def details(self) -> str:
        return str(self._status.details)

    def trailing_metadata(self) -> object:
        return self._status.trailing_metadata


def behind(error: PremoeError) -> PremoeError:
    """``error`` as it comes out of a call."""
    error.__cause__ = Failed(error)
    return error


@pytest.mark.parametrize(("failures", "most"), [(1, 0.5), (2, 1.0), (3, 2.0)])
def test_pauses_grow_and_are_drawn(failures: int, most: float) -> None:
    assert PATIENCE.pause(DOWN, failures, 1.0) == most
    assert PATIENCE.pause(DOWN, failures, 0.25) == most / 4


def test_pauses_are_bounded_and_the_peer_may_name_its_own() -> None:
    assert Patience(tries=20).pause(DOWN, 19, 1.0) == Patience().longest_pause_s
    assert PATIENCE.pause(behind(Exhausted("busy", reason="QUEUE_FULL")), 1, 0.0) == 1.0
    hasty = Patience(longest_pause_s=0.1)
    assert hasty.pause(behind(Unavailable("starting")), 1, 0.0) == 0.1


@pytest.mark.parametrize("error", [CorruptData("wrong"), Exhausted("full"), behind(Exhausted("full"))])
def test_what_will_not_pass_is_not_waited_for(error: PremoeError) -> None:
    assert PATIENCE.pause(error, 1, 0.5) is None


def test_the_last_try_is_the_last() -> None:
    assert PATIENCE.pause(DOWN, 4, 0.5) is None


def test_a_pause_ends_when_nobody_wants_the_answer() -> None:
    def fail() -> None:
        raise DOWN

    with pytest.raises(Stopped):
        Patience(pause_s=3600, longest_pause_s=3600).insist(fail, lambda: True)
