from __future__ import annotations

import copy
from typing import Any

import pytest
from crd import schema
from premoe_operator.run.definition import check_definition

from premoe_runtime.formats.errors import InvalidInput

GVK = {"group": "premoe.dev", "version": "v1alpha1", "kind": "PrunedModel"}


def document(served: dict[str, Any]) -> dict[str, Any]:
    """As an API server publishes it."""
    entry = {**served, "x-kubernetes-group-version-kind": [GVK]}
    return {"components": {"schemas": {"other": {"type": "object"}, "dev.premoe.v1alpha1.PrunedModel": entry}}}


def without(*path: str) -> dict[str, Any]:
    """Our schema less one field."""
    served = copy.deepcopy(schema())
    at: dict[str, Any] = served
    for name in path[:-1]:
        at = at["items"] if name == "[]" else at["properties"][name]
    del at["properties"][path[-1]]
    return served


def test_our_own_and_a_newer_definition_will_do() -> None:
    check_definition(document(schema()))
    newer = copy.deepcopy(schema())
    newer["properties"]["spec"]["properties"]["later"] = {"type": "string"}
    check_definition(document(newer))


def test_a_document_that_has_no_word_of_us_says_nothing() -> None:
    check_definition({})
    check_definition({"components": {"schemas": {"other": {"type": "object"}}}})


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (("spec", "engine"), "spec.engine"),
        (("spec", "workers", "rollout", "revision"), "spec.workers.rollout.revision"),
        (("spec", "patterns", "tasks", "[]", "samples"), "spec.patterns.tasks[].samples"),
        (("status", "preload"), "status.preload"),
    ],
)
def test_a_field_that_is_missing_is_named(path: tuple[str, ...], named: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_definition(document(without(*path)))
    assert f"does not know {named}: upgrade the release of premoe-crds first" in str(caught.value)
    assert caught.value.reason == "DEFINITION_OLDER"


def test_of_many_missing_fields_some_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"spec\.model, spec\.budget, spec\.experts, …: upgrade"):
        check_definition(document({"type": "object"}))
