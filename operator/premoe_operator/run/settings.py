"""Settings of the operator: `PREMOE_OPERATOR_*` variables and flags. What workers get is in the release file."""

from __future__ import annotations

import socket

from premoe_servicekit.settings import Names, ProcessSettings
from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict


class OperatorSettings(ProcessSettings):
    """Keeps PrunedModels and their children as their specs say."""

    model_config = SettingsConfigDict(env_prefix="PREMOE_OPERATOR_")

    http_host: str = "127.0.0.1"
    """Address of /livez, /readyz and /metrics."""
    http_port: int = Field(default=8080, ge=0, le=65535)
    """Port of /livez, /readyz and /metrics; 0 takes a free one, which the ready line names."""
    kubeconfig: str = ""
    """kubeconfig file; empty: the pod's service account, else $KUBECONFIG, else ~/.kube/config."""
    namespace: str = "default"
    """Namespace of the operator itself; its Lease is there."""
    watch_namespaces: Names = ()
    """Namespaces whose PrunedModels are ours, separated by commas; empty: all."""
    watch_certificates: bool = False
    """Watch cert-manager Certificates, where the API server has them."""
    release_file: str = Field(min_length=1)
    """JSON file with what the release gives every worker: image, store, gateway, TLS, tracing."""
    workers_config_map: str = ""
    """ConfigMap of our namespace in which gateways read where workers of other namespaces are; empty: none."""
    lease_name: str = "premoe-operator"
    """Lease that decides which replica acts; empty: act without one, for a single local process."""
    lease_duration_s: float = Field(default=15.0, ge=1)
    """Seconds after its last renewal when another replica may take the Lease."""
    lease_renew_s: float = Field(default=2.0, gt=0)
    """Seconds between two renewals, and between a standby's two looks."""
    lease_fence_s: float = Field(default=10.0, gt=0)
    """Seconds after the last renewal when this process stops writing and ends; below the duration."""
    release_lease_s: float = Field(default=300.0, ge=1)
    """Seconds after which a namespace whose release is gone may be taken by another release that watches it."""
    identity: str = Field(default_factory=socket.gethostname)
    """Name of this replica in the Lease."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """PrunedModels reconciled at a time; each by one task only."""
    resync_s: float = Field(default=3600.0, ge=1)
    """Seconds between two full lists, which find what a watch has missed."""
    poll_s: float = Field(default=10.0, gt=0)
    """Seconds between two looks at the pods of a model that is not healthy."""
    retry_max_s: float = Field(default=120.0, gt=0)
    """Longest wait between two tries of a model whose reconcile fails."""
    watch_stale_s: float = Field(default=180.0, gt=0)
    """Seconds without a word on a watch, not even a bookmark, after which it counts as stale."""
    watch_inactivity_s: float = Field(default=70.0, gt=0)
    """Seconds without a word on a watch after which it is opened anew. API servers send bookmarks every 60 s."""
    store_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds that the expert store gets to answer."""
    worker_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds that a worker gets to say what it keeps resident."""

    @model_validator(mode="after")
    def _fence_before_expiry(self) -> OperatorSettings:
        if not self.lease_renew_s < self.lease_fence_s < self.lease_duration_s:
            raise ValueError("lease_renew_s < lease_fence_s < lease_duration_s does not hold")
        return self
