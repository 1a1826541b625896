"""Sockets that are no HTTP connection yet: under TLS those that never begin a handshake."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
from premoe_gateway.http.app import create_app
from premoe_gateway.http.certificate import certificate_of
from premoe_gateway.http.listener import Listener
from premoe_gateway.http.protocol import ClientBounds
from premoe_gateway.http.server import HttpServer
from premoe_gateway.service import Gateway
from support.certificates import Authority, tls_folder


@asynccontextmanager
async def serving(folder: Path, **bounds: float) -> AsyncIterator[HttpServer]:
    flags = tls_folder(folder / "tls", Authority()).flags
    app = create_app(Gateway((), None, on_unknown=None, timeout_s=1))
    chosen = ClientBounds(**bounds)  # type: ignore[arg-type]
    certificate = certificate_of(flags["tls_cert"], flags["tls_key"])
    server = HttpServer(app, host="127.0.0.1", port=0, grace_s=1, bounds=chosen, certificate=certificate)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(asyncio.Event())


async def silent(server: HttpServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))


async def ended(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionResetError):
        assert await reader.read() == b""


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "premoe_gateway.http.listener"]


async def test_who_begins_no_handshake_is_left(tmp_path: Path) -> None:
    async with serving(tmp_path, receive_s=0.2) as server:
        reader, writer = await silent(server)
        async with asyncio.timeout(40):  # asyncio alone waits for a minute
            await ended(reader)
        writer.close()


async def test_handshakes_that_never_begin_are_bounded_and_come_free_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, receive_s=600.0, connections=1) as server:
        held = [await silent(server) for _ in range(110)]
        waits = [asyncio.create_task(ended(reader)) for reader, _ in held]
        async with asyncio.timeout(90):
            while sum(wait.done() for wait in waits) < 9:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert sum(wait.done() for wait in waits) == 9
        assert told(caplog) == ["new HTTP connections are closed: 101 are open"]
        for _, writer in held:
            writer.close()
        async with httpx.AsyncClient(verify=False) as http, asyncio.timeout(90):
            while True:
                with suppress(httpx.TransportError):
                    assert (await http.get(f"{server.url}/healthz")).status_code == 200
                    break
                await asyncio.sleep(0.01)
        await asyncio.gather(*waits)


def test_without_files_clients_are_closed_and_the_log_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with Listener(socket.create_server(("127.0.0.1", 0)), most=100) as listener:
        clients = [socket.create_connection(listener.getsockname(), timeout=90) for _ in range(3)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        filled: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (clients[-1].fileno() + 50, hard))
        try:
            with suppress(OSError):
                while True:
                    filled.append(os.open(os.devnull, os.O_RDONLY))
            for client in clients:
                with pytest.raises(ConnectionAbortedError):
                    listener.accept()
                assert client.recv(1) == b""
        finally:
            for file in filled:
                os.close(file)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        (line,) = told(caplog)
        assert line.startswith("new HTTP connections are closed: Too many open files")
        with socket.create_connection(listener.getsockname()):
            listener.accept()[0].close()
        for client in clients:
            client.close()
