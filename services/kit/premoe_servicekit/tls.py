"""Mutual TLS from three PEM files, read again when they change (a renewed Kubernetes Secret, cert-manager).

One ``Tls`` serves all servers and channels of a process. Files that do not fit together are refused at the start in
one line; later, the pair in use stays until a good one lies there.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc

from premoe_runtime.formats.errors import InvalidInput
from premoe_servicekit.followed import Followed
from premoe_servicekit.roles import Admission
from premoe_servicekit.settings import ProcessSettings, ServerSettings


@dataclass(frozen=True, slots=True)
class Material:
    """Certificate chain, private key and trusted authorities, as PEM; they fit together."""

    cert: bytes
    key: bytes
    ca: bytes

    def server_configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.cert)], root_certificates=self.ca)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)


class Tls:
    """The three files and what was last read from them. Safe from any thread.

    ``server_name`` is the name that peers' certificates carry where it is not the address; empty: the address.
    Raises InvalidInput (TLS_INVALID) when the files are missing, are no PEM or do not fit together.
    """

    def __init__(
        self, cert: Path, key: Path, ca: Path, *, server_name: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cert, self.key, self.ca = cert, key, ca
        self.server_name = server_name
        self._files = Followed("TLS file", (cert, key, ca), self._read, reason="TLS_INVALID", clock=clock)

    def __reduce__(self) -> tuple[Callable[..., Tls], tuple[Path, Path, Path]]:
        # A child process reads the files itself.
        return partial(Tls, server_name=self.server_name), (self.cert, self.key, self.ca)

    def expecting(self, server_name: str) -> Tls:
        """The same files for peers with another name in their certificates; ``self`` where the name is empty."""
        return Tls(self.cert, self.key, self.ca, server_name=server_name) if server_name else self

    def material(self) -> Material:
        """What new connections use. The same object until the files change for good ones."""
        return self._files.current()

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials that demand a client certificate and follow the files, one look per new connection."""
        served = self.material()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            found = self.material()
            if found is served:
                return None
            served = found
            return found.server_configuration()

        return grpc.dynamic_ssl_server_credentials(
            served.server_configuration(),
            renewed,  # type: ignore[arg-type]  # the stubs do not know that None means no change
            require_client_authentication=True,
        )

    def _read(self) -> Material:
        """The files' content, read twice around the check, so that no swap comes in between."""
        before = self._bytes()
        self._check()
        if self._bytes() != before:
            raise _invalid(f"TLS files {self.cert} and {self.key} are being replaced")
        return before

    def _bytes(self) -> Material:
        found = []
        for path in (self.cert, self.key, self.ca):
            try:
                found.append(path.read_bytes())
            except OSError as error:
                raise _invalid(f"TLS file {path} cannot be read: {error.strerror}") from None
        return Material(*found)

    def _check(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self.ca)
        except (ssl.SSLError, OSError):
            raise _invalid(f"TLS authority {self.ca} holds no certificates in PEM") from None
        load_pair(context, self.cert, self.key)


def load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Give a context its certificate chain and key. Raises InvalidInput (TLS_INVALID)."""
    try:
        # A key with a passphrase must not make OpenSSL ask the terminal for it.
        context.load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _invalid(f"TLS key {key} does not belong to certificate {cert}") from None
        raise _invalid(f"TLS certificate {cert} and key {key} are not both PEM without a passphrase") from None
    except OSError as error:
        raise _invalid(f"TLS certificate {cert} or key {key}: {error.strerror}") from None


def tls_of(settings: ProcessSettings) -> Tls | None:
    """The TLS that the settings ask for; None for plain text.

    Raises InvalidInput (TLS_INVALID) when only some of the three files are named, or the files are no good.
    """
    given = {"tls_cert": settings.tls_cert, "tls_key": settings.tls_key, "tls_ca": settings.tls_ca}
    missing = [name for name, path in given.items() if not path]
    if len(missing) == len(given):
        if settings.tls_server_name:
            raise _invalid("--tls-server-name is given without --tls-cert, --tls-key and --tls-ca")
        return None
    if missing:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise _invalid(f"TLS needs a certificate, its key and an authority; {flags} is missing")
    return Tls(
        Path(settings.tls_cert),
        Path(settings.tls_key),
        Path(settings.tls_ca),
        server_name=settings.tls_server_name,
    )


def admission_of(settings: ServerSettings, tls: Tls | None) -> Admission | None:
    """What the settings ask for; None: everybody who gets through TLS, or through plain text.

    Raises InvalidInput (TLS_INVALID) for a release without TLS, and for guests without a release.
    """
    if settings.tls_guests and not settings.tls_release:
        raise _invalid("--tls-guests is given without --tls-release")
    if not settings.tls_release:
        return None
    if tls is None:
        raise _invalid("--tls-release is given without --tls-cert, --tls-key and --tls-ca")
    return Admission(settings.tls_release, tuple(settings.tls_guests))


def _invalid(message: str) -> InvalidInput:
    return InvalidInput(message, reason="TLS_INVALID")
