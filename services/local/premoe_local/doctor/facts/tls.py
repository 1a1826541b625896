"""What three TLS files are worth: they are made to talk to each other, in memory, as two of our processes would."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from premoe_servicekit.tls import Tls

from premoe_local.doctor.tls_files import TlsFiles
from premoe_runtime.formats.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Certificate:
    """``fault`` is why nobody would take it, empty: they would. Times are seconds since 1970, None where unknown."""

    path: str
    fault: str = ""
    ends: float | None = None
    authority_ends: float | None = None
    """When the first of the authorities of the file ends."""


def examine(files: TlsFiles) -> Certificate:
    """Read the files, and have a server and a client with them ask each other for their certificates."""
    path, ca = str(files.cert), files.ca
    try:
        Tls(files.cert, files.key, ca)
        ends = _handshake(files.cert, files.key, ca)
    except InvalidInput as error:
        return Certificate(path, fault=str(error))
    except ssl.SSLCertVerificationError as error:
        return Certificate(path, f"authority {ca} does not vouch for it: {error.verify_message}")
    except ssl.SSLError as error:
        return Certificate(path, f"no handshake succeeds with it: {error.reason or error}")
    return Certificate(path, ends=ends, authority_ends=_authority_ends(ca))


def _handshake(cert: Path, key: Path, ca: Path) -> float | None:
    """When the certificate ends. Raises ssl.SSLError."""
    sides = []
    pipes = ssl.MemoryBIO(), ssl.MemoryBIO()
    for is_server in (True, False):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ca)
        context.load_cert_chain(cert, key)
        inwards, outwards = pipes if is_server else pipes[::-1]
        sides.append(context.wrap_bio(inwards, outwards, server_side=is_server))
    waiting = sides[::-1]
    while waiting:  # each side has the other's last words by its turn
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)
    return _ends(sides[1].getpeercert() or {})


def _authority_ends(ca: Path) -> float | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    found = [end for one in context.get_ca_certs() if (end := _ends(one)) is not None]
    return min(found, default=None)


def _ends(certificate: object) -> float | None:
    text = certificate.get("notAfter") if isinstance(certificate, dict) else None
    return float(ssl.cert_time_to_seconds(text)) if isinstance(text, str) else None
