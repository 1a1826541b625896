"""A real Kubernetes control plane on free loopback ports: etcd, API server, controller manager, scheduler.

RBAC is on, and nothing runs as root. ``docs/development-cluster.md`` says what it has and what it has not.

with running_control_plane(folder) as cluster:
    cluster.kubectl("apply", "-f", "-", stdin=manifest)
    assert cluster.request("GET", "/api/v1/namespaces", user="nobody").status_code == 403
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from support.audit import AuditedCall, audit_flags, audit_log, read_audit
from support.cluster_commands import KUBERNETES_SERVICE_IP, Layout, apiserver_command, controller_command, etcd_command
from support.cluster_pki import ClusterPki, write_key_pair, write_private
from support.cluster_programs import cluster_program
from support.ports import stable_port
from support.process_group import ProcessEnded, ProcessGroup, wait_until

START_TIMEOUT_S = 60.0
KUBECTL_TIMEOUT_S = 90.0
ATTEMPTS = 3
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
_SHM = Path("/dev/shm")
_SHM_FREE_BYTES = 2 * 2**30

USERS: Mapping[str, Sequence[str]] = {
    "admin": ["system:masters"],
    "nobody": [],
    "system:kube-controller-manager": [],
    "system:kube-scheduler": [],
    "system:kube-proxy": [],
    "system:node:node1": ["system:nodes"],
}
"""Users with a static token, and their groups. RBAC gives ``nobody`` nothing; bind roles to it in tests."""


class KubectlFailed(RuntimeError):
    """kubectl ended with an error; the text is what it wrote to stderr."""


@dataclass(frozen=True, slots=True)
class ExtraFlags:
    """Flags added to the programs' command lines; a later flag wins over ours."""

    apiserver: Sequence[str] = ()
    controller_manager: Sequence[str] = ()
    scheduler: Sequence[str] = ()


class ControlPlane:
    """A running control plane. Its methods may be called from any thread, starts and stops from one at a time."""

    def __init__(self, layout: Layout, group: ProcessGroup, tokens: Mapping[str, str], extra: ExtraFlags) -> None:
        self._layout = layout
        self._group = group
        self._tokens = tokens
        self._extra = extra
        self._context = ssl.create_default_context(cafile=str(self.ca_file))
        self._http = self._client()
        self.kubeconfig = self.kubeconfig_for("admin")
        """The administrator's kubeconfig file."""

    @property
    def url(self) -> str:
        return self._layout.url

    @property
    def ca_file(self) -> Path:
        return self._layout.pki / "ca.crt"

    @property
    def processes(self) -> ProcessGroup:
        """etcd, kube-apiserver, kube-controller-manager and kube-scheduler, by these names."""
        return self._group

    def token(self, user: str) -> str:
        """The bearer token of one of ``USERS``. Raises KeyError for others."""
        return self._tokens[user]

    def kubeconfig_for(self, user: str) -> Path:
        """A kubeconfig file for one of ``USERS``."""
        return self.write_kubeconfig(self.token(user), user.replace(":", "-"))

    def write_kubeconfig(self, token: str, name: str) -> Path:
        """A kubeconfig file for any bearer token, kept with the control plane's files under ``name``."""
        return write_private(
            self._layout.folder / f"{name}.kubeconfig", kubeconfig_text(self.url, self.ca_file.read_bytes(), token)
        )

    def service_account_token(self, namespace: str, name: str, duration: str = "1h") -> str:
        """A token of an existing ServiceAccount, issued by the TokenRequest API."""
        return self.kubectl("create", "token", name, "-n", namespace, "--duration", duration).strip()

    def service_account_kubeconfig(self, namespace: str, name: str, duration: str = "1h") -> Path:
        """A kubeconfig file that acts as a ServiceAccount."""
        return self.write_kubeconfig(self.service_account_token(namespace, name, duration), f"{namespace}.{name}")

    def kubectl(
        self, *arguments: str, stdin: str | None = None, kubeconfig: Path | None = None, check: bool = True
    ) -> str:
        """Run kubectl as the administrator, or with the kubeconfig given; returns its output.

        Raises KubectlFailed with kubectl's own message, unless ``check`` is off: then the message is returned.
        """
        done = subprocess.run(
            [cluster_program("kubectl"), *arguments],
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=KUBECTL_TIMEOUT_S,
            env={
                "KUBECONFIG": str(kubeconfig or self.kubeconfig),
                "KUBECACHEDIR": str(self._layout.folder / "kubectl-cache"),
                "HOME": str(self._layout.folder),
            },
        )
        if done.returncode == 0:
            return done.stdout
        if check:
            raise KubectlFailed(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout + done.stderr

    def request(self, method: str, path: str, *, user: str = "admin", **options: Any) -> httpx.Response:
        """One plain HTTP request as one of ``USERS``; ``options`` are httpx's (json, params, content, headers)."""
        headers = {"Authorization": f"Bearer {self.token(user)}", **options.pop("headers", {})}
        return self._http.request(method, path, headers=headers, **options)

    def get(self, path: str) -> dict[str, Any] | None:
        """The object at an API path, or None when there is none. Raises httpx.HTTPStatusError for other answers."""
        answer = self.request("GET", path)
        if answer.status_code == 404:
            return None
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def audit(self, start: int = 0) -> list[AuditedCall]:
        """What was asked of the API server, oldest first, Kubernetes' own programs left out; ``start``: an audit_end().

        A call is there some milliseconds after its answer.
        """
        return list(read_audit(audit_log(self._layout.folder), start))

    def audit_end(self) -> int:
        """Where the audit log ends now: what is asked later comes after it."""
        return audit_log(self._layout.folder).stat().st_size

    def ready(self) -> bool:
        """Whether the API server says so, asked once."""
        try:
            return self.request("GET", "/readyz", timeout=2.0).text == "ok"
        except httpx.HTTPError:
            return False

    def check(self) -> None:
        """Raises ProcessEnded with the last lines of its log when one of the four programs has ended."""
        self._group.check()

    def stop_apiserver(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop the API server, or kill it with SIGKILL: connections are refused until ``start_apiserver``."""
        self._group.stop("kube-apiserver", number)

    def start_apiserver(self) -> None:
        """Start the API server, the same port and data as before, and wait until it is ready."""
        flags = [*audit_flags(self._layout.folder), *self._extra.apiserver]
        self._group.start("kube-apiserver", apiserver_command(self._layout, flags))
        # Pooled connections belong to the server that ended.
        self._http.close()
        self._http = self._client()
        wait_until(self.ready, START_TIMEOUT_S, "the API server", self._group, ["etcd", "kube-apiserver"])

    def pause_etcd(self) -> None:
        """Freeze etcd: the API server stays connected and its answers stall until ``resume_etcd``."""
        self._group.pause("etcd")

    def resume_etcd(self) -> None:
        self._group.resume("etcd")

    def restart_controller_manager(self) -> None:
        """Stop the controller manager and start it again; it works again some seconds after the return."""
        self._group.stop("kube-controller-manager")
        self._start_controller("kube-controller-manager", self._extra.controller_manager)

    def start(self) -> None:
        """Start all four programs and wait until objects are reconciled. Raises ProcessEnded, TimeoutError."""
        layout, group = self._layout, self._group
        group.start("etcd", etcd_command(layout))
        self.start_apiserver()
        self._start_controller("kube-controller-manager", self._extra.controller_manager)
        self._start_controller("kube-scheduler", self._extra.scheduler)
        # Pods are refused before their namespace's ServiceAccount exists, and the controller manager makes it.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        wait_until(
            lambda: self.get(account) is not None,
            START_TIMEOUT_S,
            "the controller manager",
            group,
            ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"],
        )

    def close(self) -> None:
        self._http.close()

    def _start_controller(self, program: str, flags: Sequence[str]) -> None:
        kubeconfig = self.kubeconfig_for(f"system:{program}")
        self._group.start(program, controller_command(self._layout, program, kubeconfig, flags))

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self._context, trust_env=False, timeout=30.0)


@contextmanager
def running_control_plane(
    folder: Path, *, host: str = "127.0.0.1", extra: ExtraFlags | None = None
) -> Iterator[ControlPlane]:
    """Start a control plane that keeps files and logs in ``folder``; stop it and forget its data at the end.

    Raises ClusterMissing where the programs are not built, ProcessEnded or TimeoutError with the last lines of the
    log when one does not start.
    """
    for name in PROGRAMS:
        cluster_program(name)
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        layout = Layout(host, stable_port(host), stable_port(host), folder, _data_folder(folder))
        tokens = _write_credentials(layout)
        with ProcessGroup(folder / f"logs-{attempt}", remove=[layout.data]) as group:
            cluster = ControlPlane(layout, group, tokens, extra or ExtraFlags())
            try:
                cluster.start()
            except ProcessEnded as error:
                cluster.close()
                if "address already in use" in str(error) and attempt + 1 < ATTEMPTS:
                    continue
                raise
            try:
                yield cluster
            finally:
                cluster.close()
            return


def kubeconfig_text(url: str, ca: bytes, token: str) -> str:
    """A kubeconfig file's content; JSON is YAML."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "test", "cluster": {"server": url, "certificate-authority-data": b64encode(ca).decode()}}
        ],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    return json.dumps(document, indent=1)


def _write_credentials(layout: Layout) -> dict[str, str]:
    """Write the authority, certificates, key pair and token file; returns the tokens by user."""
    pki = ClusterPki(layout.pki)
    service = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    addresses = tuple(dict.fromkeys(("127.0.0.1", layout.host, KUBERNETES_SERVICE_IP)))
    pki.issue("apiserver", "kube-apiserver", hosts=("localhost", *service), addresses=addresses)
    pki.issue("kubelet-client", "kube-apiserver-kubelet-client", organisation="system:masters")
    write_key_pair(layout.pki, "service-accounts")
    tokens = {user: secrets.token_urlsafe(24) for user in USERS}
    lines = [
        f'{tokens[user]},{user},{re.sub("[^a-z0-9]", "-", user)}-uid,"{",".join(groups)}"\n'
        for user, groups in USERS.items()
    ]
    write_private(layout.pki / "tokens.csv", "".join(lines))
    return tokens


def _data_folder(folder: Path) -> Path:
    """A new folder for etcd, in memory where there is room: a disk shared with builds makes it slow."""
    in_memory = _SHM.is_dir() and shutil.disk_usage(_SHM).free >= _SHM_FREE_BYTES
    return Path(tempfile.mkdtemp(prefix="premoe-etcd-", dir=_SHM if in_memory else folder))
