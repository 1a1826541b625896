"""Clients that send slowly, read nothing or come in crowds: raw sockets against the real server."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from premoe_gateway.domain import Ask, Delta, Event, Finished, PatternChoice, Started, Swap
from premoe_gateway.http import protocol
from premoe_gateway.http.app import create_app
from premoe_gateway.http.protocol import ClientBounds
from premoe_gateway.http.server import HttpServer
from premoe_gateway.service import Gateway
from support.gateway_doubles import MODEL, EchoWorker, OneTask

SHORT = 0.2
LONG = 600.0
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
BODY = json.dumps({"model": MODEL, "prompt": "hi", "max_tokens": 2}).encode()
STREAM = json.dumps({"model": MODEL, "prompt": "hi", "stream": True}).encode()


class Talker(EchoWorker):
    """Goes on for ever, a KiB at a time."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
        yield Started(choice, 1, Swap(0, 0, 0.0))
        try:
            while True:
                yield Delta("x" * 1024)
                await asyncio.sleep(0)
        finally:
            self.ended.set()
        yield Finished("stop", 1, 1, 1.0, 0.0, 0.0)


@asynccontextmanager
async def serving(worker: EchoWorker | None = None, **bounds: Any) -> AsyncIterator[int]:
    """The port of a gateway whose bounds are long where a test does not say otherwise."""
    service = Gateway([worker or EchoWorker()], OneTask(), on_unknown=None, timeout_s=LONG)
    await service.refresh()
    chosen = ClientBounds(**{"receive_s": LONG, "send_s": LONG, **bounds})
    http = HttpServer(create_app(service), host="127.0.0.1", port=0, grace_s=1, bounds=chosen)
    await http.start()
    try:
        yield int(http.url.rpartition(":")[2])
    finally:
        force = asyncio.Event()
        force.set()
        await http.stop(force)


def post(body: bytes, more: bytes = b"") -> bytes:
    return HEAD + more + b"content-length: %d\r\n\r\n" % len(body) + body


def refused(answer: bytes) -> tuple[int, str]:
    """Status and code of an answer in OpenAI's shape, after which the server closes."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert b"content-type: application/json" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/comp",
        HEAD,
        HEAD + b"content-length: 100\r\n\r\n{",
        HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n",
    ],
    ids=["nothing", "half a line", "half of the headers", "half a body", "half a chunk"],
)
async def test_who_does_not_end_a_request_is_left(sent: bytes) -> None:
    async with serving(receive_s=SHORT) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert refused(await reader.read()) == (408, "request_timeout")
        writer.close()


async def test_a_byte_now_and_then_does_not_help() -> None:
    async with serving(receive_s=SHORT) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def trickle() -> None:
            for byte in HEAD * 100:
                writer.write(bytes([byte]))
                await asyncio.sleep(SHORT / 10)

        trickling = asyncio.create_task(trickle())
        assert refused(await reader.read()) == (408, "request_timeout")
        trickling.cancel()
        writer.close()


async def test_who_goes_on_sending_reads_why_it_was_refused() -> None:
    """Bytes that the server has not read when it closes would reset the connection, and drop its answer."""
    async with serving() as port:
        with socket.socket() as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", port))
            sending = asyncio.create_task(loop.sock_sendall(client, b"GET / HTTP/1.1\r\nx: " + b"x" * (32 << 20)))
            answer = b""
            while more := await loop.sock_recv(client, 1 << 16):
                answer += more
            assert refused(answer) == (400, "http_invalid")
            await asyncio.gather(sending, return_exceptions=True)


async def send_on(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def test_who_goes_on_sending_for_ever_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_S", SHORT)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"nonsense\r\n\r\n")
        assert refused(await reader.read()) == (400, "http_invalid")
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send_on(writer), 90)
        writer.close()


async def test_a_body_that_goes_on_after_its_refusal_is_timed_too() -> None:
    async with serving(receive_s=SHORT) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /nothing HTTP/1.1\r\nhost: gateway\r\ncontent-length: 1000\r\n\r\n{")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 404")
        assert answer.count(b"HTTP/1.1") == 1
        writer.close()


async def test_the_time_between_requests_is_another_one() -> None:
    """A connection that idles is kept; one whose next request has begun is not kept for long."""
    async with serving(receive_s=SHORT) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readexactly(len(b'{"status":"ok"}'))
            await asyncio.sleep(2 * SHORT)
        writer.write(b"GET /heal")
        assert refused(await reader.read()) == (408, "request_timeout")
        writer.close()


async def test_who_does_not_read_frees_the_worker() -> None:
    talker = Talker()
    async with serving(talker, send_s=SHORT) as port:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await asyncio.get_running_loop().sock_connect(deaf, ("127.0.0.1", port))
            await asyncio.get_running_loop().sock_sendall(deaf, post(STREAM))
            async with asyncio.timeout(90):
                await talker.ended.wait()


async def test_who_reads_keeps_its_worker() -> None:
    talker = Talker()
    async with serving(talker, receive_s=LONG) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(STREAM))
        for _ in range(50):
            assert await reader.read(1 << 16)
        assert not talker.ended.is_set()
        writer.close()
        async with asyncio.timeout(90):
            await talker.ended.wait()


async def test_what_is_left_to_read_does_not_keep_a_closing_connection() -> None:
    """The answer fits into buffers, and the client asked to close: nobody waits for it for ever."""

    class Long(EchoWorker):
        async def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
            yield Started(choice, 1, Swap(0, 0, 0.0))
            yield Delta("x" * (16 << 20))
            yield Finished("stop", 1, 1, 1.0, 0.0, 0.0)

    async with serving(Long(), send_s=SHORT, connections=1) as port:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await asyncio.get_running_loop().sock_connect(deaf, ("127.0.0.1", port))
            await asyncio.get_running_loop().sock_sendall(deaf, post(BODY, b"connection: close\r\n"))
            await answered(port, 200)


async def test_connections_are_bounded_and_come_free_again() -> None:
    async with serving(connections=3) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        await answered(port, 503)  # the server has taken them all
        assert await once(port) == (503, "connections_full")
        for _, writer in held:
            writer.close()
        await answered(port, 200)


async def answered(port: int, status: int) -> None:
    """Ask until that is the answer."""
    async with asyncio.timeout(90):
        while (await once(port))[0] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_there_are_files_for_all_connections() -> None:
    """Many systems let a process open 1024 at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        async with serving(connections=1500):
            wanted = 1500 if hard == resource.RLIM_INFINITY else min(1500, hard)
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def once(port: int) -> tuple[int, str]:
    """Status and code of one request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
    except ConnectionError:
        return 503, "connections_full"
    finally:
        writer.close()
    return (200, "") if answer.startswith(b"HTTP/1.1 200") else refused(answer)


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: gateway\r\nx: " + b"x" * (17 << 10),
        HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["nonsense", "TLS", "no host", "endless header", "two lengths", "no chunk"],
)
async def test_what_is_no_http_is_refused_in_the_same_shape(sent: bytes) -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert refused(await reader.read()) == (400, "http_invalid")
        writer.close()


async def test_requests_in_a_row_are_answered_in_a_row() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(BODY) * 3 + b"GET /healthz HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        assert answer.count(b"HTTP/1.1 200 OK") == 4
        writer.close()
