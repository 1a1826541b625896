"""The kinds of objects that the operator reads and writes, and where the API serves them."""

from __future__ import annotations

from dataclasses import dataclass

from premoe_operator.api.resources import GROUP, KIND, PLURAL, VERSION


@dataclass(frozen=True, slots=True)
class Kind:
    """One namespaced kind."""

    group: str
    version: str
    name: str
    plural: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Relative URL of an object, or of the collection; ``None`` as namespace is every namespace."""
        base = f"apis/{self.group}" if self.group else "api"
        parts = [base, self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        return "/".join([*parts, self.plural, *filter(None, (name, subresource))])


PRUNED_MODEL = Kind(GROUP, VERSION, KIND, PLURAL)
DEPLOYMENT = Kind("apps", "v1", "Deployment", "deployments")
REVISION = Kind("apps", "v1", "ControllerRevision", "controllerrevisions")
JOB = Kind("batch", "v1", "Job", "jobs")
SERVICE = Kind("", "v1", "Service", "services")
SERVICE_ACCOUNT = Kind("", "v1", "ServiceAccount", "serviceaccounts")
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps")
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
DISRUPTION_BUDGET = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
CERTIFICATE = Kind("cert-manager.io", "v1", "Certificate", "certificates")
POD = Kind("", "v1", "Pod", "pods")
CORE_EVENT = Kind("", "v1", "Event", "events")
EVENT = Kind("events.k8s.io", "v1", "Event", "events")
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases")

CHILDREN = (
    SERVICE_ACCOUNT,
    CONFIG_MAP,
    SERVICE,
    NETWORK_POLICY,
    DISRUPTION_BUDGET,
    CERTIFICATE,
    REVISION,
    JOB,
    DEPLOYMENT,
)
"""Kinds of a PrunedModel's children, in the order in which they are created."""

BY_NAME = {(kind.api_version, kind.name): kind for kind in (PRUNED_MODEL, *CHILDREN, POD, CORE_EVENT, EVENT, LEASE)}


def kind_of(obj: dict[str, object]) -> Kind:
    """The kind of an object. Raises KeyError for one that the operator does not know."""
    return BY_NAME[str(obj["apiVersion"]), str(obj["kind"])]
