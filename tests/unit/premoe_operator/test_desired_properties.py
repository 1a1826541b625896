"""For any valid spec: a full set of children, of JSON types, with names, labels and owners as the rest relies on."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given, settings
from premoe_operator import children
from premoe_operator.api.names import LABEL_MODEL
from premoe_operator.api.resources import MAX_NAME
from premoe_operator.children import Owner
from support.pruned_models import OWNER, Document, children_of, inputs_of, specs

LONGEST = Owner("m" * MAX_NAME, "n" * 63, OWNER.uid, 1)
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@settings(max_examples=150, deadline=None)
@given(spec=specs())
def test_any_valid_spec_builds_all_children(spec: Document) -> None:
    inputs = inputs_of(spec, owner=LONGEST)
    children = children_of(inputs)
    assert json.loads(json.dumps(children)) == children
    identities = [(child["kind"], child["metadata"]["name"]) for child in children]
    assert len(identities) == len(set(identities))
    for child in children:
        check_metadata(child)
    for pod in pod_specs(children):
        check_restricted(pod)
    tasks = len(inputs.spec.patterns.tasks)
    assert sum(child["kind"] == "Job" for child in children) == (3 if tasks else 1)


@settings(max_examples=50, deadline=None)
@given(spec=specs())
def test_building_twice_gives_equal_values(spec: Document) -> None:
    assert children_of(inputs_of(spec)) == children_of(inputs_of(spec))
    assert children.spec_hash(inputs_of(spec)) == children.spec_hash(inputs_of(spec))


def check_metadata(child: dict[str, Any]) -> None:
    metadata = child["metadata"]
    assert len(metadata["name"]) <= 63
    assert DNS_LABEL.fullmatch(metadata["name"])
    if child["kind"] == "Job":
        # An Indexed Job's pods are called <job>-<index>, and the name is the host name.
        assert len(metadata["name"]) + len("-63") <= 63
    assert metadata["namespace"] == LONGEST.namespace
    (owner,) = metadata["ownerReferences"]
    assert owner["uid"] == LONGEST.uid
    assert owner["controller"] is owner["blockOwnerDeletion"] is True
    assert metadata["labels"]["app.kubernetes.io/managed-by"] == "premoe-operator"
    assert metadata["labels"][LABEL_MODEL] == LONGEST.name
    assert all(len(value) <= 63 for value in metadata["labels"].values())


def pod_specs(children: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [child["spec"]["template"]["spec"] for child in children if child["kind"] in ("Deployment", "Job")]


def check_restricted(pod: dict[str, Any]) -> None:
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    volumes = [volume["name"] for volume in pod["volumes"]]
    assert len(volumes) == len(set(volumes))
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        names = [variable["name"] for variable in container["env"]]
        assert len(names) == len(set(names))
