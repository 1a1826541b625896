"""Seeded specs against a real API server: refused in clear words, or good for a full set of children it takes too."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from premoe_operator.children import Owner, pod_template_refusals
from support.cluster_fixtures import control_plane
from support.control_plane import ControlPlane
from support.pruned_models import SMALLEST, Document, children_of, inputs_of
from support.prunedmodel_definition import apply_child, create, definition
from support.spec_fuzz import fuzzed_spec

__all__ = ["control_plane", "definition"]

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SEEDS = 1200
BATCHES = 8
APPLIED = 104
NAMESPACE = "default"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_spec_is_refused_clearly_or_builds_children_that_the_server_takes(
    control_plane: ControlPlane, definition: Document, batch: int
) -> None:
    (version,) = definition["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    accepted = refused = applied = 0
    for seed in range(batch, SEEDS, BATCHES):
        spec = fuzzed_spec(seed, schema)
        answer = create(control_plane, NAMESPACE, spec, name=f"fuzz-{seed}", dry_run=True)
        if answer.status_code != 201:
            check_refusal(seed, answer)
            refused += 1
            continue
        accepted += 1
        children = built_children(seed, answer.json())
        if children and applied < APPLIED // BATCHES:
            applied += 1
            for child in children:
                check_applied(control_plane, seed, child)
    # A generator that makes only good or only bad specs would test one half of this.
    assert accepted > SEEDS // BATCHES // 4
    assert refused > SEEDS // BATCHES // 4
    assert applied == APPLIED // BATCHES


def check_refusal(seed: int, answer: httpx.Response) -> None:
    status = answer.json()
    assert answer.status_code == 422, (seed, status)
    assert status["reason"] == "Invalid", seed
    causes = status["details"]["causes"]
    assert causes, seed
    for cause in causes:
        # What the schema as a whole refuses is told under no field, and names it in the message.
        place = cause["field"].lstrip(".") if cause["field"] != "<nil>" else cause["message"]
        assert "spec" in place or "some validation rules were not checked" in place, (seed, cause)
        assert cause["message"], (seed, cause)


def built_children(seed: int, model: Document) -> list[Document]:
    """All children; none where the release refuses the podTemplate, which the operator tells in a condition."""
    metadata = model["metadata"]
    owner = Owner(metadata["name"], metadata["namespace"], metadata["uid"], metadata["generation"])
    inputs = inputs_of(model["spec"], owner=owner)
    if pod_template_refusals(inputs):
        return []
    children = children_of(inputs)
    assert json.loads(json.dumps(children)) == children, seed
    return children


def check_applied(cluster: ControlPlane, seed: int, child: dict[str, Any]) -> None:
    if child["kind"] == "Certificate":
        return  # cert-manager's API is not on this server
    answer = apply_child(cluster, child)
    assert answer.status_code in (200, 201), (seed, child["kind"], answer.json()["message"])


def test_the_smallest_spec_builds_children_that_the_server_takes(
    control_plane: ControlPlane, definition: Document
) -> None:
    model = create(control_plane, NAMESPACE, SMALLEST, name="smallest", dry_run=True).json()
    for child in built_children(0, model):
        check_applied(control_plane, 0, child)
