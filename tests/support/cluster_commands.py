"""Command lines of the control plane's programs, and why they are as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.cluster_programs import cluster_program

SERVICE_CIDR = "10.96.0.0/16"
KUBERNETES_SERVICE_IP = "10.96.0.1"
ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one control plane listens and keeps its files."""

    host: str
    api_port: int
    etcd_port: int
    folder: Path
    data: Path

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.api_port}"

    @property
    def pki(self) -> Path:
        return self.folder / "pki"


def etcd_command(layout: Layout) -> list[str]:
    url = f"http://127.0.0.1:{layout.etcd_port}"
    return [
        cluster_program("etcd"),
        f"--data-dir={layout.data}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        # One member has no peers: any free port will do, and the advertised address is only a name.
        "--listen-peer-urls=http://127.0.0.1:0",
        "--initial-advertise-peer-urls=http://127.0.0.1:1",
        "--initial-cluster=default=http://127.0.0.1:1",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver_command(layout: Layout, extra: Sequence[str] = ()) -> list[str]:
    pki = layout.pki
    return [
        cluster_program("kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{layout.etcd_port}",
        f"--bind-address={layout.host}",
        f"--advertise-address={layout.host}",
        f"--secure-port={layout.api_port}",
        "--endpoint-reconciler-type=none",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/kubelet-client.crt",
        f"--kubelet-client-key={pki}/kubelet-client.key",
        f"--token-auth-file={pki}/tokens.csv",
        f"--service-account-issuer={ISSUER}",
        f"--api-audiences={ISSUER}",
        f"--service-account-key-file={pki}/service-accounts.pub",
        f"--service-account-signing-key-file={pki}/service-accounts.key",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--authorization-mode=Node,RBAC",
        # The second is off by default but on in OpenShift: it shows a missing `update` on a resource's finalizers.
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        "--allow-privileged=true",
        "--profiling=false",
        # Without it a stop waits a minute for the watches of clients that are still there.
        "--shutdown-watch-termination-grace-period=1s",
        *extra,
    ]


def controller_command(layout: Layout, program: str, kubeconfig: Path, extra: Sequence[str] = ()) -> list[str]:
    """The command of kube-controller-manager or kube-scheduler; neither listens anywhere."""
    command = [cluster_program(program), f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0"]
    if program == "kube-controller-manager":
        command += [
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={layout.pki}/service-accounts.key",
            f"--root-ca-file={layout.pki}/ca.crt",
            # Enough for thousands of pods: the default makes 100 pods take 15 seconds.
            "--kube-api-qps=300",
            "--kube-api-burst=600",
        ]
    return [*command, *extra]
