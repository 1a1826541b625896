"""The API server's audit log: who asked for what and what it answered, Kubernetes' own programs left out.

start = cluster.audit_end()
…
calls = [call for call in cluster.audit(start) if call.user == account and call.resource != "leases"]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"]},
        {
            "level": "None",
            "users": [
                "system:apiserver",
                "system:kube-controller-manager",
                "system:kube-scheduler",
                "system:kube-proxy",
            ],
        },
        {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*", "/version"]},
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True, slots=True)
class AuditedCall:
    """One request. A watch shows when it starts and again when it ends; others when they are answered."""

    user: str
    verb: str
    resource: str
    """Plural, with the subresource: `deployments/status`. Empty for discovery."""
    namespace: str
    name: str
    code: int
    user_agent: str
    stage: str
    """ResponseStarted, ResponseComplete or Panic."""


def audit_flags(folder: Path) -> Sequence[str]:
    """Write the policy into ``folder``; returns the API server's flags that make it log there."""
    policy = folder / "audit-policy.json"
    policy.write_text(json.dumps(_POLICY))
    # Never rotated: a position in the file stays good for the whole run.
    return (f"--audit-policy-file={policy}", f"--audit-log-path={audit_log(folder)}", "--audit-log-maxsize=65536")


def audit_log(folder: Path) -> Path:
    return folder / "audit.log"


def read_audit(log: Path, start: int = 0) -> Iterator[AuditedCall]:
    """The requests logged from a byte position on, oldest first; a line still being written is left out."""
    with log.open("rb") as file:
        file.seek(start)
        for line in file:
            if line.endswith(b"\n"):
                yield _call(json.loads(line))


def _call(event: dict[str, object]) -> AuditedCall:
    reference = _dict(event, "objectRef")
    resource = [str(reference[key]) for key in ("resource", "subresource") if key in reference]
    code = _dict(event, "responseStatus").get("code", 0)
    assert isinstance(code, int)
    return AuditedCall(
        user=str(_dict(event, "user").get("username", "")),
        verb=str(event["verb"]),
        resource="/".join(resource),
        namespace=str(reference.get("namespace", "")),
        name=str(reference.get("name", "")),
        code=code,
        user_agent=str(event.get("userAgent", "")),
        stage=str(event["stage"]),
    )


def _dict(event: dict[str, object], key: str) -> dict[str, object]:
    found = event.get(key, {})
    assert isinstance(found, dict)
    return found
