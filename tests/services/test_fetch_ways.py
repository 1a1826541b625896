"""Real expert stores and the worker's source: which way bytes come, and what happens when stores go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.tls import Tls, tls_of
from premoe_worker.adapters.expert_store import GrpcExpertSource, open_source
from premoe_worker.adapters.patience import Patience
from premoe_worker.adapters.reading import Reading
from support.blob_pack import BlobPack, write_blob_pack
from support.certificates import Authority, tls_folder
from support.processes import Child, serving
from support.redis_servers import several

from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.storage import open_store

pytestmark = pytest.mark.services

MODULE = "premoe_expert_store.cli"
BLOB = 367 * 4096
EVERYTHING = [ExpertId(layer, expert) for layer in range(2) for expert in range(8)]
JOIN_S = 30.0


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def pack(url: str) -> BlobPack:
    return write_blob_pack(open_store(url), experts=8, blob_bytes=BLOB)


@contextmanager
def store(url: str, *options: str) -> Iterator[Child]:
    with serving(MODULE, ["--store-url", url, *options]) as running:
        yield running


def bring(
    source: GrpcExpertSource,
    pack: BlobPack,
    experts: Sequence[ExpertId] = EVERYTHING,
    on_blob: Callable[[], object] = lambda: None,
) -> None:
    """Every byte is right when it is handed over, and known to be."""
    rooms: dict[ExpertId, bytearray] = {}
    finished: list[ExpertId] = []

    def into(expert: ExpertId) -> memoryview:
        rooms[expert] = bytearray(BLOB)
        return memoryview(rooms[expert])

    def done(expert: ExpertId, checked: bool) -> None:
        assert checked
        assert bytes(rooms[expert]) == pack.blobs[expert]
        finished.append(expert)
        on_blob()

    source.fetch(experts, into, done)
    assert sorted(finished) == sorted(experts)


def read(source: GrpcExpertSource) -> dict[tuple[str, str], int]:
    return {(str(scheme), str(tier)): count for (scheme, tier), count in source.fetcher.counts.now()[0].items()}


def test_a_store_of_the_same_node_is_read_from_its_files(url: str, pack: BlobPack, tmp_path: Path) -> None:
    with store(url, "--cache-dir", str(tmp_path / "cache"), "--http-port", "0") as child:
        with open_source(child.address, None, "") as source:
            bring(source, pack)
            first = read(source)
            bring(source, pack)
    assert {scheme for scheme, _ in first} == {"http"}
    assert read(source)["file", "node"] == len(EVERYTHING) * BLOB


def test_another_node_s_store_is_read_over_http(url: str, pack: BlobPack) -> None:
    reading = Reading(schemes=("http", "grpc"))
    with store(url, "--http-port", "0") as child, open_source(child.address, None, "", reading) as source:
        bring(source, pack)
    assert {scheme for scheme, _ in read(source)} == {"http"}


def test_under_tls_bytes_come_over_https(url: str, pack: BlobPack, tmp_path: Path) -> None:
    authority = Authority()
    theirs = tls_folder(tmp_path / "theirs", authority, "store")
    ours = tls_of(tls_folder(tmp_path / "ours", authority, "worker").settings())
    assert isinstance(ours, Tls)
    reading = Reading(schemes=("http", "grpc"))
    with store(url, "--http-port", "0", *theirs.arguments) as child:
        with open_source(child.address, ours, "", reading) as source:
            bring(source, pack)
    assert {scheme for scheme, _ in read(source)} == {"http"}


def test_redis_is_read_without_the_store_in_between(url: str, pack: BlobPack, tmp_path: Path) -> None:
    with ExitStack() as stack:
        (tmp_path / "redis").mkdir()
        servers = stack.enter_context(several(tmp_path / "redis"))
        child = stack.enter_context(store(url, "--redis-url", servers.url))
        reading = Reading(redis_url=servers.url, schemes=("redis", "grpc"))
        source = stack.enter_context(open_source(child.address, None, "", reading))
        until = time.monotonic() + JOIN_S
        while ("redis", "redis") not in read(source):
            bring(source, pack)
            assert time.monotonic() < until, "the store writes what it reads through to Redis"


def test_without_any_of_it_the_stream_is_enough(url: str, pack: BlobPack) -> None:
    reading = Reading(schemes=("grpc",))
    with store(url, "--http-port", "0") as child, open_source(child.address, None, "", reading) as source:
        bring(source, pack)
    assert {scheme for scheme, _ in read(source)} == {"grpc"}


def test_a_store_killed_in_mid_swap_is_replaced_by_another(url: str, pack: BlobPack, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef0123456789abcdef\n")
    options = ["--http-port", "0", "--url-key", str(tmp_path / "key")]
    with store(url, *options) as first, store(url, *options) as second:
        address = f"ipv4:{first.address},{second.address}"
        with blocking_channel(address) as channel:
            patience = Patience(tries=8, pause_s=0.05)
            source = GrpcExpertSource(address, channel, patience=patience, reading=Reading(schemes=("http", "grpc")))
            for _ in range(3):
                bring(source, pack, on_blob=first.process.kill)
            source.close()


def test_when_every_store_is_down_object_storage_is_read(url: str, pack: BlobPack) -> None:
    with store(url, "--http-port", "0") as child, blocking_channel(child.address) as channel:
        patience = Patience(tries=2, pause_s=0.01)
        direct = GrpcExpertSource(
            child.address, channel, patience=patience, reading=Reading(object_store_url=url, schemes=("grpc", "object"))
        )
        without = GrpcExpertSource(child.address, channel, patience=patience)
        without.manifest()
        bring(direct, pack, EVERYTHING[:4])
        child.process.kill()
        child.process.wait()
        bring(direct, pack)
        assert read(direct)["object", "object"] == len(EVERYTHING) * BLOB
        with pytest.raises(Unavailable):
            bring(without, pack)
        direct.close()
        without.close()


def test_a_plan_that_gets_old_in_mid_swap_is_renewed(url: str, pack: BlobPack) -> None:
    """Addresses are good for a second: the swap takes longer."""
    reading = Reading(schemes=("http",))
    with store(url, "--http-port", "0", "--lease-s", "0.5") as child:
        with open_source(child.address, None, "", reading) as source:
            bring(source, pack, on_blob=lambda: time.sleep(0.2))
    assert {scheme for scheme, _ in read(source)} == {"http"}
