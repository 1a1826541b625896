"""HTTPS at the gateway: a certificate that may change, and what is refused at the start."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx
import pytest
from premoe_gateway.http.app import create_app
from premoe_gateway.http.certificate import certificate_of
from premoe_gateway.http.server import HttpServer
from premoe_gateway.service import Gateway
from support.certificates import Authority, Pair, TlsFolder, tls_folder

from premoe_runtime.formats.errors import InvalidInput


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.pem.decode())


async def shown(server: HttpServer, authority: Authority) -> str:
    """The certificate that a new connection gets, as PEM."""
    port = int(server.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(authority))
    found: ssl.SSLObject = writer.get_extra_info("ssl_object")
    der = found.getpeercert(binary_form=True)
    assert der is not None
    writer.close()
    return ssl.DER_cert_to_PEM_cert(der)


def same(pem: str, pair: Pair) -> bool:
    return pem.split() == pair.cert.decode().split()


def serving(folder: TlsFolder) -> HttpServer:
    app = create_app(Gateway((), None, on_unknown=None, timeout_s=1))
    certificate = certificate_of(folder.flags["tls_cert"], folder.flags["tls_key"])
    return HttpServer(app, host="127.0.0.1", port=0, grace_s=1, certificate=certificate)


async def test_new_connections_get_a_renewed_certificate_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    authority = Authority()
    folder = tls_folder(tmp_path / "tls", authority)
    server = serving(folder)
    assert (await server.start()).startswith("https://")
    async with httpx.AsyncClient(verify=trusting(authority)) as http:
        assert (await http.get(f"{server.url}/healthz")).status_code == 200
        pair = authority.issue()
        folder.write(Pair(pair.cert, authority.issue().key), authority.pem)
        for _ in range(3):
            assert not same(await shown(server, authority), pair)
            await asyncio.sleep(0.5)
        folder.write(pair, authority.pem)
        async with asyncio.timeout(90):
            while not same(await shown(server, authority), pair):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert (await http.get(f"{server.url}/healthz")).status_code == 200  # over the connection from before
    await server.stop(asyncio.Event())


async def test_plain_http_is_no_way_past_it(tmp_path: Path) -> None:
    server = serving(tls_folder(tmp_path / "tls", Authority()))
    await server.start()
    with pytest.raises(httpx.TransportError):
        async with httpx.AsyncClient() as http:
            await http.get(server.url.replace("https", "http") + "/healthz")
    await server.stop(asyncio.Event())


def test_half_of_a_pair_and_what_does_not_fit_are_one_line(tmp_path: Path) -> None:
    folder = tls_folder(tmp_path / "tls", Authority())
    cert, key = folder.flags["tls_cert"], folder.flags["tls_key"]
    assert certificate_of("", "") is None
    for given, message in (
        ((cert, ""), "--http-tls-key is missing"),
        (("", key), "--http-tls-cert is missing"),
        ((cert, str(tmp_path / "none")), "cannot be read: No such file"),
        ((key, cert), "are not both PEM"),
    ):
        with pytest.raises(InvalidInput, match=message) as caught:
            certificate_of(*given)
        assert caught.value.reason == "TLS_INVALID"
