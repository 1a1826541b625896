"""The start of the operator: what may be missing in the cluster, and a signal that comes too early."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cluster_fixtures import control_plane, namespace
from support.control_plane import ControlPlane
from support.operator_fixtures import site
from support.operator_process import Site, make_site, pruned_model, running_operator, wait

__all__ = ["control_plane", "namespace", "site"]

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(240)]

CERT_MANAGER = "/apis/cert-manager.io/v1"


def test_without_cert_manager_models_that_need_no_certificate_are_looked_after(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    control_plane.kubectl("delete", "crd", "certificates.cert-manager.io", "--ignore-not-found")
    wait(lambda: control_plane.get(CERT_MANAGER) is None, 60, lambda: "cert-manager's API is still served")
    values = ("tls.mode=CertManager", "tls.issuerRef.name=ca")
    site = make_site(control_plane, namespace, tmp_path, values=values)
    with running_operator(site, watch_certificates=True, watch_stale_s=5, watch_inactivity_s=70) as child:
        site.create("prunedmodels", pruned_model("plain", access={"tls": {"mode": "Disabled"}}))
        site.create("prunedmodels", pruned_model("guarded"))
        site.wait_for("plain", "ArtifactsReady", "False", "Unschedulable")
        refused = site.wait_for("guarded", "Ready", "False", "RefusedByApi")
        assert "Certificate guarded-worker: this API server does not serve cert-manager.io/v1" in refused["message"]
        assert "this API server has no cert-manager Certificates" in child.stderr()
        assert "Traceback" not in child.stderr()
        assert child.stop() == 0


def test_a_signal_during_the_first_lists_releases_the_lease(site: Site) -> None:
    """The operator may have its Lease and nothing else, so the lists never end."""
    site.cluster.kubectl("delete", "rolebinding", f"op-{site.namespace}", "-n", site.namespace)

    def holder() -> str:
        lease = site.get("leases", "premoe-operator") or {}
        return str(lease.get("spec", {}).get("holderIdentity", ""))

    with running_operator(site, identity="first") as child:
        wait(lambda: "first list: " in child.stderr(), 60, child.stderr)
        assert holder() == "first"
        assert child.stop() == 0
        assert holder() == ""
