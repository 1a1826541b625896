"""operator.enabled=false: the operator and all its rights go, everything that serves stays as it is."""

from __future__ import annotations

import pytest
from support.charts import CHART, named, of_kind, render, rendered, values_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_only_the_operator_goes() -> None:
    without = render(CHART, values_of("full") | {"operator": {"enabled": False}})
    gone = identities(rendered("full")) - identities(without)
    assert identities(without) < identities(rendered("full"))
    assert gone == {
        ("ClusterRole", "premoe-serving"),
        ("ClusterRoleBinding", "premoe-serving"),
        ("Certificate", "premoe-operator"),
        ("ConfigMap", "premoe-operator"),
        ("ConfigMap", "premoe-operator-env"),
        ("Deployment", "premoe-operator"),
        ("Lease", "premoe-operator"),
        ("NetworkPolicy", "premoe-operator"),
        ("PodDisruptionBudget", "premoe-operator"),
        ("Role", "premoe-operator-lease"),
        ("RoleBinding", "premoe-operator-lease"),
        ("Service", "premoe-operator"),
        ("ServiceAccount", "premoe-operator"),
        ("ServiceMonitor", "premoe-operator"),
        ("ValidatingAdmissionPolicy", "premoe-serving-pod-template"),
        ("ValidatingAdmissionPolicyBinding", "premoe-serving-pod-template"),
    }
    for deployment in of_kind(without, "Deployment"):
        name = deployment["metadata"]["name"]
        assert deployment["spec"] == named(rendered("full"), "Deployment", name)["spec"], name


def identities(objects: list[dict[str, object]]) -> set[tuple[object, object]]:
    return {(obj["kind"], obj["metadata"]["name"]) for obj in objects}  # type: ignore[index]
