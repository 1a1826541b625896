"""A real Kubernetes node beside a real control plane, in private namespaces: kubelet, containerd, kube-proxy, CoreDNS.

with running_node(folder) as node, node.network():
    node.kubectl("apply", "-f", "-", stdin=manifest)

Pods have addresses, Services and DNS names; NetworkPolicies are enforced; nothing leads out. docs/adr/0008 says why it
is built this way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import node_cgroups
from support.cluster_programs import ClusterMissing, cluster_program
from support.control_plane import ControlPlane, ExtraFlags, running_control_plane
from support.network_policy_enforcer import Enforcer, enforcing
from support.node_images import coredns_image, pause_image
from support.node_namespaces import ADDRESS, FILES, Namespaces, build_static, private_namespaces
from support.process_group import ProcessGroup, wait_until

NAME = "node1"
PROGRAMS = ("unshare", "nsenter", "ip", "containerd", "ctr", "runc", "iptables", "nft")
CNI = Path("/usr/lib/cni")
CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18, "CAP_MKNOD": 27}
START_TIMEOUT_S = 90.0
CTR = ("ctr", "-a", "/run/containerd/containerd.sock", "-n", "k8s.io")
API_FLAGS = ExtraFlags(
    # The Service `kubernetes` needs endpoints for pods; the node's name leads nowhere.
    apiserver=("--endpoint-reconciler-type=lease", "--kubelet-preferred-address-types=InternalIP"),
)


class NodeUnavailable(RuntimeError):
    """No node can run here; the text says why in one line."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node. What talks to its network does so within ``network()``, or in a child started there."""

    control_plane: ControlPlane
    namespaces: Namespaces
    group: ProcessGroup
    enforcer: Enforcer
    cgroup: str
    address: str = ADDRESS

    def network(self) -> AbstractContextManager[None]:
        """The calling thread, its children and new threads are inside the node's network for a block."""
        return self.namespaces.network()

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """kubectl as the administrator. Raises KubectlFailed. Within ``network()`` only."""
        return self.control_plane.kubectl(*arguments, stdin=stdin, check=check)

    def run(
        self, *command: str, stdin: str | None = None, timeout_s: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A command inside all namespaces of the node. Raises AssertionError with its messages."""
        return self.namespaces.run(*command, stdin=stdin, timeout_s=timeout_s, check=check)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """A server inside the node's network, with this machine's files; it ends with the node."""
        with self.network():
            self.group.start(name, command, {**os.environ, **(environment or {})})

    def import_image(self, tar: Path) -> None:
        """Load an OCI tar into the container runtime."""
        import_image(self.namespaces, tar)

    def check(self) -> None:
        """Raises ProcessEnded or RuntimeError when a part of the node no longer works."""
        self.control_plane.check()
        self.group.check()
        self.enforcer.check()


def why_unavailable() -> str | None:
    """Why no node can run on this machine, in one line, or None."""
    if os.geteuid() != 0:
        return "a node needs root: namespaces, mounts and control groups"
    missing = [name for name, number in CAPABILITIES.items() if not _effective_capabilities() >> number & 1]
    if missing:
        return f"a node needs the capabilities {', '.join(missing)}, which root lacks here"
    programs = [name for name in PROGRAMS if shutil.which(name) is None]
    if programs or not (CNI / "bridge").exists():
        return f"{', '.join(programs) or 'CNI plugins'} not installed; run: make node-tools"
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        return "a C compiler is needed for the node's first process; install gcc"
    try:
        for name in ("kube-apiserver", "kubelet", "kube-proxy", "coredns"):
            cluster_program(name)
    except ClusterMissing as error:
        return str(error)
    return node_cgroups.problem()


@contextmanager
def running_node(folder: Path) -> Iterator[Node]:
    """Start control plane and node, keeping files and logs in ``folder``; at the end nothing of them is left but those.

    Raises NodeUnavailable where that cannot be, ProcessEnded or TimeoutError with the end of a log if a part fails.
    """
    reason = why_unavailable()
    if reason is not None:
        raise NodeUnavailable(reason)
    folder.mkdir(parents=True, exist_ok=True)
    pause = build_static(FILES / "pause.c", folder / "pause")
    images = [pause_image(pause, folder / "image-pause"), coredns_image(folder / "image-coredns")]
    disk = [folder / "var-lib"]
    with ExitStack() as stack:
        cgroup = stack.enter_context(node_cgroups.control_groups())
        group = stack.enter_context(ProcessGroup(folder / "logs", remove=disk))
        inside = stack.enter_context(private_namespaces(folder, group, pause))
        _start_containerd(inside, group, folder)
        for image in images:
            import_image(inside, image)
        with inside.network():
            cluster = stack.enter_context(
                running_control_plane(folder / "control-plane", host=ADDRESS, extra=API_FLAGS)
            )
            _start_kubelet(inside, group, folder, cluster, cgroup)
            _start_kube_proxy(inside, group, folder, cluster)
            cluster.kubectl("apply", "-f", str(FILES / "coredns.yaml"))
            enforcer = stack.enter_context(enforcing(cluster, inside.network))
            node = Node(cluster, inside, group, enforcer, cgroup)
            wait_until(lambda: _ready(cluster), START_TIMEOUT_S, "the node and its DNS", group, ["kubelet"], poll_s=0.2)
        yield node


def import_image(inside: Namespaces, tar: Path) -> None:
    """Load an OCI tar. Raises AssertionError with the runtime's message."""
    inside.run(*CTR, "images", "import", str(tar), timeout_s=300.0)


def _start_containerd(inside: Namespaces, group: ProcessGroup, folder: Path) -> None:
    (folder / "cni").mkdir()
    shutil.copyfile(FILES / "bridge.conflist", folder / "cni" / "bridge.conflist")
    configuration = _configure(folder, "containerd.toml", {"FOLDER": str(folder)})
    group.start("containerd", inside.command("containerd", "-c", str(configuration)))
    wait_until(
        lambda: inside.run(*CTR, "version", check=False).returncode == 0,
        START_TIMEOUT_S,
        "containerd",
        group,
        ["containerd"],
    )


def _start_kubelet(inside: Namespaces, group: ProcessGroup, folder: Path, cluster: ControlPlane, cgroup: str) -> None:
    # Names that CoreDNS does not know are asked of no other server.
    (folder / "resolv.conf").write_text("")
    values = {"FOLDER": str(folder), "CGROUP": cgroup, "CA": str(cluster.ca_file)}
    command = [
        cluster_program("kubelet"),
        f"--config={_configure(folder, 'kubelet.yaml', values)}",
        f"--kubeconfig={cluster.kubeconfig_for(f'system:node:{NAME}')}",
        f"--hostname-override={NAME}",
        f"--node-ip={ADDRESS}",
        "--root-dir=/var/lib/kubelet",
    ]
    group.start("kubelet", inside.command(*command))


def _start_kube_proxy(inside: Namespaces, group: ProcessGroup, folder: Path, cluster: ControlPlane) -> None:
    values = {"KUBECONFIG": str(cluster.kubeconfig_for("system:kube-proxy")), "ADDRESS": ADDRESS}
    configuration = _configure(folder, "kube-proxy.yaml", values)
    group.start("kube-proxy", inside.command(cluster_program("kube-proxy"), f"--config={configuration}"))


def _configure(folder: Path, name: str, values: Mapping[str, str]) -> Path:
    """Write a configuration file with @NAME@ replaced by its value."""
    text = (FILES / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    target = folder / name
    target.write_text(text)
    return target


def _ready(cluster: ControlPlane) -> bool:
    """Whether the node is Ready and cluster DNS answers."""
    node = cluster.get(f"/api/v1/nodes/{NAME}") or {}
    conditions = node.get("status", {}).get("conditions", [])
    dns = cluster.get("/apis/apps/v1/namespaces/kube-system/deployments/coredns") or {}
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return ready and dns.get("status", {}).get("readyReplicas", 0) > 0


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
