"""TLS of the HTTP API: a certificate and its key, read again when they change. Clients need none of their own."""

from __future__ import annotations

import ssl
from pathlib import Path

from premoe_servicekit.followed import Followed
from premoe_servicekit.tls import load_pair

from premoe_runtime.formats.errors import InvalidInput


class Certificate:
    """Two PEM files. Raises InvalidInput (TLS_INVALID) when they are no good at the start."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self._file = Followed("TLS file", (cert, key), self._read, reason="TLS_INVALID")

    def context(self) -> ssl.SSLContext:
        """For a server: every connection gets the certificate that is in force when it comes."""
        first = self._read()

        def newest(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            connection.context = self._file.current()

        first.sni_callback = newest
        return first

    def _read(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        load_pair(context, self._cert, self._key)
        return context


def certificate_of(cert: str, key: str) -> Certificate | None:
    """What the settings ask for; None for plain HTTP. Raises InvalidInput (TLS_INVALID)."""
    if not cert and not key:
        return None
    if not (cert and key):
        missing = "--http-tls-key" if cert else "--http-tls-cert"
        raise InvalidInput(f"HTTPS needs a certificate and its key; {missing} is missing", reason="TLS_INVALID")
    return Certificate(Path(cert), Path(key))
