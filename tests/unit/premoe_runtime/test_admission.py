"""Overload: one judge of room, asked before any work."""

from __future__ import annotations

import pytest

from premoe_runtime.formats.errors import Exhausted, PremoeError, Unavailable
from premoe_runtime.serving.admission import Admission


def refusal(admission: Admission) -> PremoeError | None:
    try:
        admission.check()
    except PremoeError as error:
        return error
    return None


def test_what_runs_does_not_wait() -> None:
    admission = Admission(2)
    first, second = admission.enter(), admission.enter()
    assert isinstance(refusal(admission), Exhausted)
    with pytest.raises(Exhausted, match="2 requests are waiting already"):
        admission.enter()
    assert admission.waiting == 2
    admission.running = 1
    third = admission.enter()
    assert isinstance(refusal(admission), Exhausted)
    for place in (first, second, third, first):
        place.leave()
    assert admission.waiting == 0  # what ran is told of only after the next step
    assert refusal(admission) is None


def test_nobody_is_let_in_once_it_drains() -> None:
    admission = Admission(2)
    place = admission.enter()
    admission.draining = True
    with pytest.raises(Unavailable, match="use another one"):
        admission.enter()
    place.leave()
    assert isinstance(refusal(admission), Unavailable)
