from __future__ import annotations

from pathlib import Path

import pytest
from support.profiles import WEIGHTS, profile

from premoe_runtime.formats.errors import NotFound
from premoe_runtime.offline.calibration import Example, Message
from premoe_runtime.offline.patterns.library import ids
from premoe_runtime.offline.patterns.measurements import Measurement, ensure_profile, find_profile, load_profile
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.storage import Store, open_store

EXAMPLES = [Example((Message("user", "1+1"),), "2")]
ADD = Measurement.of(WEIGHTS, "add", "given", EXAMPLES)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"memory://{tmp_path}")


def refuse() -> Profile:
    raise AssertionError("measured twice")


def test_what_was_measured_is_not_measured_again(store: Store) -> None:
    assert find_profile(store, ADD) is None
    made = ensure_profile(store, ADD, profile)
    assert made == profile().profile_id
    assert ensure_profile(store, ADD, refuse) == made
    assert load_profile(store, ADD).profile_id == made


@pytest.mark.parametrize(
    "other",
    [
        Measurement.of("v" * 64, "add", "given", EXAMPLES),
        Measurement.of(WEIGHTS, "sub", "given", EXAMPLES),
        Measurement.of(WEIGHTS, "add", "none", EXAMPLES),
        Measurement.of(WEIGHTS, "add", "given", [Example((Message("user", "1+1"),), "3")]),
    ],
    ids=["weights", "task", "answers", "examples"],
)
def test_another_measurement_is_another_profile(store: Store, other: Measurement) -> None:
    ensure_profile(store, ADD, profile)
    assert find_profile(store, other) is None
    with pytest.raises(NotFound, match="has not been profiled with this calibration data"):
        load_profile(store, other)


def test_who_records_first_wins(store: Store) -> None:
    """Two pods of an Indexed Job's index, one of them thought lost."""
    winner = ""

    def beaten() -> Profile:
        nonlocal winner
        winner = ensure_profile(store, ADD, lambda: profile(seed=1))
        return profile(seed=2)

    assert ensure_profile(store, ADD, beaten) == winner == profile(seed=1).profile_id


def test_a_record_whose_profile_is_gone_is_replaced(store: Store) -> None:
    first = ensure_profile(store, ADD, lambda: profile(seed=1))
    store.delete(f"profiles/{first}.safetensors")
    assert find_profile(store, ADD) is None
    second = ensure_profile(store, ADD, lambda: profile(seed=2))
    assert find_profile(store, ADD) == second
    assert ids(store, "profiles") == [second]
