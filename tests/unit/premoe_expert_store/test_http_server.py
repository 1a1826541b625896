"""The byte server on loopback over a shelf of the test's own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from premoe_dataplane.signing import BlobName, Signer
from premoe_expert_store.catalogue import Catalogue, Pack
from premoe_expert_store.http.handler import BlobHandler
from premoe_expert_store.http.server import ByteServer, Listening
from premoe_servicekit.tls import Tls
from support.blob_pack import BlobPack, write_blob_pack
from support.certificates import Authority, TlsFolder, tls_folder
from support.fake_shelf import FakeShelf

from premoe_runtime.formats.errors import CorruptData, Exhausted, InvalidInput, PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import PIECE_BYTES
from premoe_runtime.storage import open_store

BLOB = 3 << 20
UNTIL = 2_000_000_000
HERE, COLD = ExpertId(0, 0), ExpertId(1, 1)


class Counted:
    def __init__(self) -> None:
        self.answers: list[tuple[int, int]] = []
        self.more = asyncio.Event()

    def answered(self, code: int, num_bytes: int) -> None:
        self.answers.append((code, num_bytes))
        self.more.set()
        self.more = asyncio.Event()


@dataclass
class Running:
    """A server, and what is behind it."""

    server: ByteServer
    shelf: FakeShelf
    pack: BlobPack
    known: Pack
    signer: Signer
    counted: Counted

    def url(self, expert: ExpertId, **changes: str) -> str:
        name = BlobName(self.pack.manifest.digest(expert), self.pack.model_id, expert)
        return f"http://{self.server.address}{self.signer.path(name._replace(**changes), UNTIL)}"  # type: ignore[arg-type]


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    running: list[Running] = []
    store = open_store(f"file://{tmp_path / 'store'}")
    pack = write_blob_pack(store, blob_bytes=BLOB, experts=2)
    catalogue = Catalogue(store)

    async def begin(idle_s: float = 60.0, **listening: object) -> Running:
        shelf = FakeShelf(pack.blobs, tmp_path, cold=[COLD])
        signer, counted = Signer(lambda: (b"k" * 32,), clock=lambda: UNTIL - 100), Counted()
        handler = BlobHandler(
            shelf,
            lambda name: catalogue.pack(name.model_id),
            signer,
            lambda request, name: None,
            counted,
            idle_s=idle_s,
        )
        fields = {"host": "127.0.0.1", "port": 0, "connections": 64, **listening}
        server = ByteServer(handler, Listening(**fields), tls=None)  # type: ignore[arg-type]
        await server.start()
        running.append(Running(server, shelf, pack, await catalogue.pack(pack.model_id), signer, counted))
        return running[-1]

    yield begin
    for one in running:
        await one.server.stop(0)
        await one.shelf.close()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_a_blob_its_ranges_and_its_head_over_one_connection(start: Start, client: aiohttp.ClientSession) -> None:
    running = await start()
    blob, url = running.pack.blobs[HERE], running.url(HERE)
    for header, status, expected in [
        (None, 200, blob),
        ("bytes=0-0", 206, blob[:1]),
        (f"bytes={PIECE_BYTES - 1}-{PIECE_BYTES}", 206, blob[PIECE_BYTES - 1 : PIECE_BYTES + 1]),
        ("bytes=-5", 206, blob[-5:]),
        ("bytes=1-2,5-6", 200, blob),
    ]:
        async with client.get(url, headers={} if header is None else {"Range": header}) as answer:
            assert (answer.status, await answer.read()) == (status, expected)
            assert answer.headers["ETag"] == f'"{running.pack.manifest.digest(HERE)}"'
            if status == 206:
                assert answer.headers["Content-Range"].endswith(f"/{BLOB}")
    async with client.head(url) as answer:
        assert (answer.status, answer.content_length, await answer.read()) == (200, BLOB, b"")
    async with client.get(url, headers={"Range": f"bytes={BLOB}-"}) as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{BLOB}")
    assert running.server.connections == 1
    assert running.counted.answers[0] == (200, BLOB)
    assert running.shelf.holds == 0


async def test_errors_are_one_line_with_the_right_code(start: Start, client: aiohttp.ClientSession) -> None:
    running = await start()
    url = running.url(HERE)
    other = running.pack.manifest.digest(COLD)
    for asked, status, line in [
        (url.replace("&layer=0", ""), 400, "URL_INVALID"),
        (url.replace("layer=0", "layer=1"), 403, "URL_FORGED"),
        (url.replace(running.pack.manifest.digest(HERE), other), 403, "URL_FORGED"),
        (url.replace(f"until={UNTIL}", f"until={UNTIL + 1}"), 403, "URL_FORGED"),
        (running.url(HERE, digest=other), 404, "EXPERT_NOT_FOUND"),
        (running.url(HERE, model_id="0" * 64), 404, "MODEL_NOT_FOUND"),
        (f"http://{running.server.address}/", 404, "nothing at"),
    ]:
        async with client.get(asked) as answer:
            text = await answer.text()
            assert (answer.status, text.count("\n")) == (status, 1)
            assert line in text
    async with client.post(url, data=b"x") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert running.shelf.most_holds == 0


async def test_an_address_that_has_ended(start: Start, client: aiohttp.ClientSession) -> None:
    running = await start()
    name = BlobName(running.pack.manifest.digest(HERE), running.pack.model_id, HERE)
    async with client.get(f"http://{running.server.address}{running.signer.path(name, UNTIL - 200)}") as answer:
        assert answer.status == 403
        assert "URL_EXPIRED" in await answer.text()


async def test_a_blob_is_sent_while_it_arrives(start: Start, client: aiohttp.ClientSession) -> None:
    running = await start()
    blob = running.shelf.blob(running.known, COLD)
    asked = asyncio.ensure_future(client.get(running.url(COLD)))
    await blob.arrive(PIECE_BYTES)
    answer = await asked
    assert (answer.status, answer.content_length) == (200, BLOB)
    got = await answer.content.readexactly(PIECE_BYTES)
    await blob.arrive(BLOB)
    assert got + await answer.read() == running.pack.blobs[COLD]


async def test_readers_keep_their_grace_until_a_second_stop_cuts_it(
    start: Start, client: aiohttp.ClientSession
) -> None:
    running = await start()
    blob = running.shelf.blob(running.known, COLD)
    asked = asyncio.ensure_future(client.get(running.url(COLD)))
    await blob.arrive(PIECE_BYTES)
    answer = await asked
    await answer.content.readexactly(PIECE_BYTES)
    stopping = asyncio.ensure_future(running.server.stop(3600))
    await asyncio.sleep(0)
    assert not stopping.done()
    await running.server.stop(0)
    await stopping
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.read()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unavailable("the object store does not answer"), 503),
        (Exhausted("no room"), 503),
        (CorruptData("wrong"), 500),
    ],
)
async def test_an_arrival_that_fails_before_its_first_byte(
    start: Start, client: aiohttp.ClientSession, error: PremoeError, status: int
) -> None:
    running = await start()
    asked = asyncio.ensure_future(client.get(running.url(COLD)))
    await running.shelf.blob(running.known, COLD).fail(error)
    async with await asked as answer:
        assert (answer.status, "Retry-After" in answer.headers) == (status, status == 503)
        assert await answer.text() == f"{error.reason}: {error}\n"
    assert running.shelf.holds == 0


async def test_an_arrival_that_fails_later_breaks_the_connection(start: Start, client: aiohttp.ClientSession) -> None:
    running = await start()
    blob = running.shelf.blob(running.known, COLD)
    asked = asyncio.ensure_future(client.get(running.url(COLD)))
    await blob.arrive(PIECE_BYTES)
    answer = await asked
    await blob.fail(Unavailable("gone"))
    with pytest.raises(aiohttp.ClientError):
        await answer.read()
    async with client.get(running.url(HERE)) as other:
        assert await other.read() == running.pack.blobs[HERE]
    assert running.counted.answers[0] == (200, 0)


async def test_who_waits_for_an_arrival_and_leaves_does_not_hold_it(start: Start) -> None:
    running = await start()
    held = asyncio.Event()
    running.shelf.on_hold = held.set
    async with aiohttp.ClientSession() as client:
        asked = asyncio.ensure_future(client.get(running.url(COLD)))
        await held.wait()
        asked.cancel()
    await running.shelf.idle.wait()


async def test_a_reader_that_takes_nothing_is_cut_and_nobody_else_waits(
    start: Start, client: aiohttp.ClientSession
) -> None:
    running = await start(idle_s=0.2)
    host, _, port = running.server.address.rpartition(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        slow.sendall(f"GET {running.url(HERE).partition(str(port))[2]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async with client.get(running.url(HERE)) as answer:
            assert await answer.read() == running.pack.blobs[HERE]
        while (200, 0) not in running.counted.answers:
            await running.counted.more.wait()


async def test_connections_beyond_the_bound_are_told_so(start: Start, client: aiohttp.ClientSession) -> None:
    running = await start(connections=1)
    first, second = aiohttp.ClientSession(), aiohttp.ClientSession()
    async with first, second:
        async with first.get(running.url(HERE)) as answer:
            await answer.read()
        async with second.get(running.url(HERE)) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert "CONNECTIONS_FULL" in await answer.text()
        async with first.get(running.url(HERE)) as answer:
            assert answer.status == 200


async def test_congestion_control_is_of_the_port(start: Start) -> None:
    running = await start(congestion_control="reno")
    server = running.server._server
    assert server is not None
    assert server.sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
    with pytest.raises(InvalidInput, match="congestion control 'none-such' cannot be had here") as caught:
        await start(congestion_control="none-such")
    assert "\n" not in str(caught.value)


async def test_mutual_tls_follows_its_files(start: Start, tmp_path: Path) -> None:
    """Blobs come to who has a certificate of the authority of now, and to nobody else."""
    plain = await start()
    first, second = Authority("first"), Authority("second")
    files, now = tls_folder(tmp_path / "server", first), [0.0]
    paths = [files.folder / name for name in ("tls.crt", "tls.key", "ca.crt")]
    server = ByteServer(
        plain.server._http.request_handler,  # type: ignore[arg-type]
        Listening("127.0.0.1", 0, 8),
        tls=Tls(*paths, clock=lambda: now[0]),
    )
    await server.start()
    url = plain.url(HERE).replace(f"http://{plain.server.address}", f"https://{server.address}")

    async def read(folder: TlsFolder, *, certificate: bool = True) -> bytes:
        context = ssl.create_default_context(cafile=folder.folder / "ca.crt")
        if certificate:
            context.load_cert_chain(folder.folder / "tls.crt", folder.folder / "tls.key")
        async with aiohttp.ClientSession() as client, client.get(url, ssl=context) as answer:
            return await answer.read()

    ours, theirs = tls_folder(tmp_path / "ours", first), tls_folder(tmp_path / "theirs", second)
    try:
        assert await read(ours) == plain.pack.blobs[HERE]
        with pytest.raises(aiohttp.ClientError):
            await read(ours, certificate=False)
        with pytest.raises(aiohttp.ClientError):
            await read(theirs)
        files.write(second.issue(), second.pem)
        now[0] += 10.0
        assert await read(theirs) == plain.pack.blobs[HERE]
        with pytest.raises(aiohttp.ClientError):
            await read(ours)
        # The server's new certificate is trusted, the caller's old one is not.
        (tmp_path / "ours" / "ca.crt").unlink()
        (tmp_path / "ours" / "ca.crt").write_bytes(second.pem)
        with pytest.raises(aiohttp.ClientError):
            await read(ours)
    finally:
        await server.stop(0)


async def test_another_replica_is_told_apart(start: Start, client: aiohttp.ClientSession) -> None:
    running = await start()
    for suffix in ("", "&peer=1"):
        asked = asyncio.ensure_future(client.get(running.url(COLD) + suffix))
        await running.shelf.blob(running.known, COLD).fail(Unavailable("none"))
        assert (await asked).status == 503
    assert running.shelf.purposes == ["demand", "peer"]


async def test_a_proxy_may_send_whole_blobs_itself(start: Start, client: aiohttp.ClientSession) -> None:
    running = await start()
    digest = running.pack.manifest.digest(HERE)
    asks = {"X-Sendfile-Type": "X-Accel-Redirect"}
    async with client.get(running.url(HERE), headers=asks) as answer:
        assert answer.headers["X-Accel-Redirect"] == f"/premoe-blobs/{digest[:2]}/{digest}"
        assert await answer.read() == b""
    async with client.get(running.url(HERE).replace("sig=", "sig=0"), headers=asks) as answer:
        assert (answer.status, answer.headers.get("X-Accel-Redirect")) == (403, None)
    asked = asyncio.ensure_future(client.get(running.url(COLD), headers=asks))
    await running.shelf.blob(running.known, COLD).arrive(PIECE_BYTES)
    async with await asked as answer:
        assert answer.headers.get("X-Accel-Redirect") is None, "what arrives is sent by the store"
        await running.shelf.blob(running.known, COLD).arrive(BLOB)
        assert await answer.read() == running.pack.blobs[COLD]


async def test_a_reader_that_leaves_in_the_midst_is_no_fault_of_ours(
    start: Start, client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start()
    host, _, port = running.server.address.rpartition(":")
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((host, int(port)))
        reader.sendall(f"GET {running.url(HERE).partition(str(port))[2]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert await asyncio.to_thread(reader.recv, 100)
    while (200, 0) not in running.counted.answers:
        await running.counted.more.wait()
    async with client.get(running.url(HERE)) as answer:
        assert await answer.read() == running.pack.blobs[HERE]
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
