"""The spec as a value: parsed by the names of the API only, refused in one line."""

from __future__ import annotations

import pytest
from premoe_operator.api.resources import PrunedModelSpec, parse_spec
from support.pruned_models import FULL, SMALLEST, changed

from premoe_runtime.formats.errors import InvalidInput


def test_the_smallest_spec_has_every_default() -> None:
    spec = parse_spec(SMALLEST)
    assert (spec.workers.replicas, spec.engine.device, spec.patterns.tasks) == (1, "auto", [])
    assert spec.pod_template == {}


def test_a_full_spec_survives_a_round_trip() -> None:
    spec = parse_spec(FULL)
    assert PrunedModelSpec.model_validate(spec.model_dump(by_alias=True)) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": None}, "spec: Value error, give budget or experts"),
        ({"workers.replicas": -1}, "spec.workers.replicas: Input should be greater than or equal to 0"),
        ({"workers.shards": 2}, "spec.workers.shards: Extra inputs are not permitted"),
        ({"pod_template": {}}, "spec.pod_template: Extra inputs are not permitted"),
    ],
)
def test_what_this_version_does_not_know_is_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_spec(changed(SMALLEST, changes))
    assert str(caught.value) == message
    assert caught.value.reason == "SPEC_INVALID"


def test_a_spec_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidInput, match="spec: "):
        parse_spec(None)
