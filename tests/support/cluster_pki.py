"""Keys and certificates of a test cluster as files: one authority, made anew for every run."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from support.certificates import Authority, private_pem

LIFETIME_DAYS = 6


class ClusterPki:
    """The files of one authority in ``folder``: ca.crt, and NAME.crt, NAME.key for what it issues."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ca_file = folder / "ca.crt"
        self._authority = Authority("test-cluster-ca")
        self.ca_file.write_bytes(self._authority.pem)

    def issue(
        self,
        name: str,
        common_name: str,
        *,
        organisation: str | None = None,
        hosts: Sequence[str] = (),
        addresses: Sequence[str] = (),
    ) -> tuple[Path, Path]:
        """Write NAME.crt and NAME.key, good for client and server; returns their paths."""
        pair = self._authority.issue(
            *hosts, addresses=addresses, common_name=common_name, organisation=organisation, days=LIFETIME_DAYS
        )
        certificate = self.folder / f"{name}.crt"
        certificate.write_bytes(pair.cert)
        return certificate, write_private(self.folder / f"{name}.key", pair.key.decode())


def write_key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.pub and NAME.key, a bare pair as service-account tokens need it; returns their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = folder / f"{name}.pub"
    encoding, shape = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(encoding, shape))
    return public, write_private(folder / f"{name}.key", private_pem(key).decode())


def write_private(path: Path, text: str) -> Path:
    """Write a file that only its owner reads, at once: a program that reads it meanwhile sees it whole."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return fresh.replace(path)
