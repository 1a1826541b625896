"""Which certificate, if any, a PrunedModel's workers use, and the cert-manager object that asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from premoe_servicekit.roles import Role, identity

from premoe_operator.api.resources import IssuerRef
from premoe_operator.children.inputs import Inputs, metadata
from premoe_operator.children.services import workers
from premoe_operator.kube.objects import Json

TLS_FOLDER = "/etc/premoe/tls"


@dataclass(frozen=True, slots=True)
class Transport:
    """Mutual TLS with the certificate in a Secret; ``issuer`` fills the Secret, where we have to ask for it."""

    secret_name: str
    issuer: IssuerRef | None = None


def transport(inputs: Inputs) -> Transport | None:
    """The workers' certificate; None: plain text."""
    tls, release = inputs.spec.access.tls, inputs.release.tls
    mode, secret, issuer = tls.mode, tls.secret_name, tls.issuer_ref
    if mode == "Release":
        mode = "Disabled" if release.mode == "Disabled" else "Mutual"
        secret, issuer = release.secret_name, release.issuer_ref if release.mode == "CertManager" else None
    if mode == "Disabled":
        return None
    if issuer is not None:
        return Transport(f"{inputs.worker_name}-tls", issuer)
    return Transport(secret)


def certificate(inputs: Inputs) -> Json | None:
    """A certificate for the workers, as servers and as clients; None where a Secret is given or nothing is encrypted.

    The names are those by which peers call the workers, and those of the loopback call behind the health port.
    """
    found = transport(inputs)
    if found is None or found.issuer is None:
        return None
    service = workers(inputs).host
    release = inputs.release.tls
    names = [service, f"*.{service}", f"{service}.{inputs.release.cluster_domain}", "localhost", release.server_name]
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": metadata(inputs, inputs.worker_name, "worker"),
        "spec": {
            "secretName": found.secret_name,
            "duration": release.duration,
            "renewBefore": release.renew_before,
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "usages": ["digital signature", "server auth", "client auth"],
            "dnsNames": [each for each in names if each],
            "ipAddresses": ["127.0.0.1", "::1"],
            **({"uris": _uris(release.release, inputs.owner.namespace)} if release.release else {}),
            "issuerRef": found.issuer.model_dump(by_alias=True),
        },
    }


def _uris(release: str, namespace: str) -> list[str]:
    """The role, which is all that services of before there were tenants know, and the tenant: the namespace."""
    return [identity(release, Role.WORKER), identity(release, Role.WORKER, namespace)]
