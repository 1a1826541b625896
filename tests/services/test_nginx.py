"""nginx in front of the expert store, as the page on operation says: it sends whole blobs out of the cache itself."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe_dataplane.wire import experts_to_wire
from premoe_servicekit.clients import channel
from support.blob_pack import BlobPack, write_blob_pack
from support.processes import Child, serving
from support.servers import find_program, free_port, running

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.storage import open_store

PAGE = Path(__file__).parents[2] / "docs" / "operate.md"
BLOB = 3 << 20
EVERYTHING = [ExpertId(layer, expert) for layer in range(2) for expert in range(2)]


@dataclass(frozen=True)
class Front:
    """A store behind nginx, which notes how many bytes of a body it sent, and how many came from the store."""

    store: Child
    pack: BlobPack
    address: str
    log: Path

    def sent(self) -> list[tuple[int, int]]:
        lines = [line.split(";") for line in self.log.read_text().splitlines()]
        return [(int(sent), sum(map(int, re.findall(r"\d+", of_store)))) for sent, of_store in lines]


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    url, cache, log, store_port = f"file://{tmp_path}/store", tmp_path / "cache", tmp_path / "access.log", free_port()
    pack = write_blob_pack(open_store(url), blob_bytes=BLOB, experts=2)
    (locations,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    locations = locations.replace("127.0.0.1:50055", f"127.0.0.1:{store_port}")
    locations = locations.replace("/var/lib/premoe/blobs/", f"{cache}/")
    configuration = tmp_path / "nginx.conf"

    def command(port: int) -> list[str]:
        folders = "".join(
            f"{kind}_temp_path {tmp_path};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        configuration.write_text(
            f"{'user root;' if os.geteuid() == 0 else ''} daemon off; pid {tmp_path}/nginx.pid; error_log stderr;\n"
            "events { worker_connections 64; }\n"
            "http { log_format bytes '$body_bytes_sent;$upstream_bytes_received';\n"
            f"access_log {log} bytes; {folders}\n"
            f"server {{ listen 127.0.0.1:{port};\n{locations}}} }}\n"
        )
        return [find_program("nginx"), "-p", str(tmp_path), "-c", str(configuration)]

    with running(command, tmp_path / "nginx.log") as (port, _):
        flags = ["--store-url", url, "--cache-dir", str(cache), "--http-port", str(store_port)]
        with serving("premoe_expert_store.cli", [*flags, "--advertise", f"127.0.0.1:{port}"]) as store:
            yield Front(store, pack, f"127.0.0.1:{port}", log)


async def test_blobs_come_through_nginx_and_whole_ones_out_of_the_cache(front: Front) -> None:
    async with channel(front.store.address) as to_store, aiohttp.ClientSession() as client:
        stub = experts_pb2_grpc.ExpertStoreServiceStub(to_store)
        answer = await stub.Resolve(pb.ResolveRequest(experts=experts_to_wire(EVERYTHING), schemes=["http"]))
        addresses = {expert: blob.sources[0].url for expert, blob in zip(EVERYTHING, answer.blobs, strict=True)}
        assert all(address.startswith(f"http://{front.address}/") for address in addresses.values())
        for _ in ("arriving", "whole"):
            for expert, address in addresses.items():
                async with client.get(address) as blob:
                    assert (blob.status, await blob.read()) == (200, front.pack.blobs[expert])
        first = addresses[EVERYTHING[0]]
        async with client.get(first, headers={"Range": "bytes=5-9"}) as part:
            assert (part.status, await part.read()) == (206, front.pack.blobs[EVERYTHING[0]][5:10])
            assert part.headers["Content-Range"] == f"bytes 5-9/{BLOB}"
        async with client.get(first.replace("expert=0", "expert=1")) as forged:
            assert forged.status == 403
        digest = front.pack.manifest.digest(EVERYTHING[0])
        async with client.get(f"http://{front.address}/premoe-blobs/{digest[:2]}/{digest}") as direct:
            assert direct.status == 404, "nobody comes to the files without the store's word"
    whole = [upstream for body, upstream in front.sent() if body == BLOB]
    assert len(whole) == 2 * len(EVERYTHING)
    assert [upstream < 4096 for upstream in whole] == [False] * len(EVERYTHING) + [True] * len(EVERYTHING)
