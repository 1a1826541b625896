"""Every example is taken by a real API server as it stands, and its children are too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from premoe_operator.children import Owner
from support.cluster_fixtures import control_plane, namespace
from support.control_plane import ControlPlane
from support.pruned_models import Document, children_of, inputs_of
from support.prunedmodel_definition import apply_child, definition, models_path

__all__ = ["control_plane", "definition", "namespace"]

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("definition")]

FOLDER = Path(__file__).parents[2] / "examples"
FOREIGN = "keda.sh/"
"""An API that is not on this server."""
EXAMPLES = sorted(FOLDER.glob("*.yaml"))


def documents(example: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(example.read_text()) if document]


def test_examples_are_numbered_smallest_first_and_say_what_they_show() -> None:
    assert [int(example.name[:2]) for example in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))
    sizes = [len(example.read_text().splitlines()) for example in EXAMPLES]
    assert min(sizes) == sizes[0]
    for example in EXAMPLES:
        comment = [line for line in example.read_text().splitlines() if line.startswith("# ")]
        assert sum(map(len, comment)) > 100, example.name


def test_each_example_has_one_prunedmodel_of_its_own_name() -> None:
    names = [
        document["metadata"]["name"]
        for example in EXAMPLES
        for document in documents(example)
        if document["kind"] == "PrunedModel"
    ]
    assert len(names) == len(set(names)) == len(EXAMPLES)


def test_every_checkpoint_has_patterns_from_its_own_example_or_an_earlier_one() -> None:
    """A worker without any pattern answers no request."""
    profiled = set()
    for example in EXAMPLES:
        (spec,) = (each["spec"] for each in documents(example) if each["kind"] == "PrunedModel")
        if spec.get("patterns", {}).get("tasks"):
            profiled.add(spec["model"]["uri"])
        assert spec["model"]["uri"] in profiled, example.name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_applies_and_its_children_would(control_plane: ControlPlane, namespace: str, example: Path) -> None:
    known = yaml.safe_dump_all(each for each in documents(example) if not each["apiVersion"].startswith(FOREIGN))
    control_plane.kubectl("apply", "--server-side", "--validate=strict", "-n", namespace, "-f", "-", stdin=known)
    (name,) = (each["metadata"]["name"] for each in documents(example) if each["kind"] == "PrunedModel")
    found: Any = control_plane.get(models_path(namespace, name))
    metadata = found["metadata"]
    owner = Owner(name, namespace, metadata["uid"], metadata["generation"])
    for child in children_of(inputs_of(found["spec"], owner=owner)):
        if child["kind"] != "Certificate":  # cert-manager's API is not on this server
            answer = apply_child(control_plane, child)
            assert answer.status_code == 201, answer.text


def test_applying_the_autoscaled_example_again_keeps_what_the_autoscaler_chose(
    control_plane: ControlPlane, namespace: str
) -> None:
    (example,) = FOLDER.glob("*-autoscaling.yaml")
    scaler = next(each for each in documents(example) if each["kind"] == "HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    scale = f"{models_path(namespace, target['name'])}/scale"
    control_plane.kubectl("apply", "--server-side", "-n", namespace, "-f", str(example))
    chosen = {"spec": {"replicas": scaler["spec"]["maxReplicas"]}}
    headers = {"Content-Type": "application/merge-patch+json"}
    control_plane.request("PATCH", scale, json=chosen, headers=headers).raise_for_status()
    control_plane.kubectl("apply", "--server-side", "-n", namespace, "-f", str(example))
    found = control_plane.get(scale)
    assert found is not None
    assert found["spec"] == chosen["spec"]


def test_autoscalers_ask_for_metrics_that_exist_and_scale_their_own_prunedmodel() -> None:
    page = (FOLDER.parent / "docs" / "reference" / "metrics.md").read_text()
    scalers = [
        (example, each)
        for example in EXAMPLES
        for each in documents(example)
        if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    ]
    assert {scaler["kind"] for _, scaler in scalers} == {"HorizontalPodAutoscaler", "ScaledObject"}
    for example, scaler in scalers:
        (model,) = (each for each in documents(example) if each["kind"] == "PrunedModel")
        target = {key: model[key] for key in ("apiVersion", "kind")} | {"name": model["metadata"]["name"]}
        assert scaler["spec"]["scaleTargetRef"] == target
        assert "replicas" not in model["spec"]["workers"]
        (name,) = {
            each.replace("premoe_", "premoe:", 1) for each in re.findall(r"premoe[_:]num\w+", example.read_text())
        }
        assert f"| `{name}` | gauge |" in page
