"""Throw-away certificate authorities and the three PEM files that our processes take."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from premoe_servicekit.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM."""

    cert: bytes
    key: bytes


class Authority:
    """A certificate authority of its own, good for a week."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        certificate = (
            _builder(self._name, self._name, self._key.public_key(), days=7)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        *names: str,
        addresses: Sequence[str] = ("127.0.0.1",),
        uris: Sequence[str] = (),
        common_name: str = "premoe test",
        organisation: str | None = None,
        days: float = 1,
    ) -> Pair:
        """A certificate for both sides of mutual TLS; ``days`` below 0: expired.

        Kubernetes reads the common name as a user and the organisation as a group.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            _builder(_name(common_name, organisation), self._name, key.public_key(), days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.UniformResourceIdentifier(uri) for uri in uris]
        alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return Pair(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), private_pem(key))


@dataclass(frozen=True, slots=True)
class TlsFolder:
    """A folder as Kubernetes mounts a Secret: tls.crt, tls.key and ca.crt are links through ``..data``."""

    folder: Path

    @property
    def flags(self) -> dict[str, str]:
        """The three settings."""
        return {
            "tls_cert": str(self.folder / "tls.crt"),
            "tls_key": str(self.folder / "tls.key"),
            "tls_ca": str(self.folder / "ca.crt"),
        }

    @property
    def arguments(self) -> list[str]:
        """The three flags."""
        return [part for name, path in self.flags.items() for part in ("--" + name.replace("_", "-"), path)]

    def settings(self, **changes: object) -> ServerSettings:
        return ServerSettings(**{**self.flags, **changes})  # type: ignore[arg-type]

    def write(self, pair: Pair, *authorities: bytes) -> None:
        """Replace all three files at once, as the kubelet does: one rename of the link ``..data``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.folder / f"..{os.urandom(4).hex()}"
        data.mkdir()
        for name, content in (("tls.crt", pair.cert), ("tls.key", pair.key), ("ca.crt", b"".join(authorities))):
            (data / name).write_bytes(content)
            link = self.folder / name
            if not link.is_symlink():
                link.symlink_to(Path("..data") / name)
        fresh = self.folder / "..data_tmp"
        fresh.symlink_to(data.name)
        fresh.replace(self.folder / "..data")


def tls_folder(folder: Path, authority: Authority, *names: str, uris: Sequence[str] = ()) -> TlsFolder:
    """A folder with a certificate of ``authority`` for 127.0.0.1 and ``names``, which also is the one trusted."""
    made = TlsFolder(folder)
    made.write(authority.issue(*names, uris=uris), authority.pem)
    return made


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key without a password, PKCS #8."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common_name: str, organisation: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organisation is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
    return x509.Name(attributes)


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - datetime.timedelta(hours=1))
        .not_valid_after(end)
    )
