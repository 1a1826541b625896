"""RBAC, admission policy and Lease of the chart, read as objects."""

from __future__ import annotations

import pytest
from support.charts import CHART, PROFILES, named, of_kind, render, rendered, values_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.mark.parametrize("profile", PROFILES)
def test_no_rule_is_about_secrets_or_everything(profile: str) -> None:
    for role in of_kind(rendered(profile), "Role", "ClusterRole"):
        for rule in role["rules"]:
            assert "secrets" not in rule["resources"]
            assert "*" not in rule["resources"] + rule["verbs"] + rule["apiGroups"]


def test_all_namespaces_need_a_cluster_role_and_a_list_only_roles() -> None:
    everywhere = rendered("plain")
    assert [obj["metadata"]["name"] for obj in of_kind(everywhere, "ClusterRole")] == ["premoe-serving"]
    listed = render(CHART, values_of("plain") | {"watchNamespaces": ["team-a", "team-b"]})
    assert of_kind(listed, "ClusterRole", "ClusterRoleBinding") == []
    roles = {obj["metadata"]["namespace"]: obj["rules"] for obj in of_kind(listed, "Role")}
    assert set(roles) == {"serving", "team-a", "team-b"}
    assert roles["team-a"] == roles["team-b"] == named(everywhere, "ClusterRole", "premoe-serving")["rules"]
    for binding in of_kind(listed, "RoleBinding"):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "premoe-operator", "namespace": "serving"}]


def test_certificates_are_written_only_with_cert_manager() -> None:
    groups = {
        profile: {
            group
            for role in of_kind(rendered(profile), "Role", "ClusterRole")
            for rule in role["rules"]
            for group in rule["apiGroups"]
        }
        for profile in PROFILES
    }
    assert {profile: "cert-manager.io" in found for profile, found in groups.items()} == {
        "plain": False,
        "secret": False,
        "full": True,
    }


def test_the_lease_has_no_spec_that_an_upgrade_could_reset() -> None:
    lease = named(rendered("plain"), "Lease", "premoe-operator")
    assert set(lease) == {"apiVersion", "kind", "metadata"}
    rules = named(rendered("plain"), "Role", "premoe-operator-lease")["rules"]
    assert rules == [
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": ["premoe-operator"],
            "verbs": ["get", "update"],
        },
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": ["premoe-gateway-workers"],
            "verbs": ["get", "patch"],
        },
    ]


def test_existing_service_accounts_are_used() -> None:
    values = values_of("plain") | {"operator": {"serviceAccount": {"create": False, "name": "given"}}}
    objects = render(CHART, values)
    assert "premoe-operator" not in {obj["metadata"]["name"] for obj in of_kind(objects, "ServiceAccount")}
    assert named(objects, "Deployment", "premoe-operator")["spec"]["template"]["spec"]["serviceAccountName"] == "given"
    assert named(objects, "ClusterRoleBinding", "premoe-serving")["subjects"][0]["name"] == "given"


def test_pod_template_policy_exists_only_with_allowed_paths() -> None:
    assert of_kind(rendered("plain"), "ValidatingAdmissionPolicy") == []
    policy = named(rendered("full"), "ValidatingAdmissionPolicy", "premoe-serving-pod-template")
    allowed = next(item for item in policy["spec"]["variables"] if item["name"] == "allowed")
    assert allowed["expression"] == '["spec.containers","spec.dnsPolicy"]'
    off = values_of("full") | {"podTemplate": {"allowedPaths": ["spec.dnsPolicy"], "admissionPolicy": False}}
    assert of_kind(render(CHART, off), "ValidatingAdmissionPolicy") == []


def test_extra_objects_are_templates() -> None:
    assert named(rendered("full"), "ConfigMap", "premoe-extra")
    values = values_of("plain") | {
        "extraObjects": ["{apiVersion: v1, kind: ConfigMap, metadata: {name: {{ .Release.Name }}-text}}"]
    }
    assert named(render(CHART, values), "ConfigMap", "premoe-text")
