"""Which sources Resolve names, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from premoe_dataplane.plan import SCHEMES, BlobPlan
from premoe_dataplane.signing import BLOBS, BlobName, Signer
from premoe_expert_store.catalogue import Catalogue, Pack
from premoe_expert_store.sources import Ways
from support.blob_pack import write_blob_pack

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.packs.checks import piece_checks
from premoe_runtime.storage import open_store

HERE, FAR = ExpertId(0, 1), ExpertId(1, 2)
SIGNER = Signer(lambda: (b"k" * 32,), clock=lambda: 1000.0)
EVERYTHING = Ways(SIGNER, "http://a:80", lambda digest: "http://b:80", Path("/cache"), redis=True)


async def a_pack(blob_bytes: int = 1 << 20) -> Pack:
    store = open_store(f"memory://sources-{blob_bytes}")
    return await Catalogue(store).pack(write_blob_pack(store, blob_bytes=blob_bytes).model_id)


def ways_of(plan: BlobPlan) -> list[str]:
    """Scheme and tier of each source, and the host of a URL."""
    return [" ".join(filter(None, (one.scheme, one.tier, urlsplit(one.url).netloc))) for one in plan.sources]


async def plans(ways: Ways, schemes: Sequence[str], blob_bytes: int = 1 << 20) -> tuple[list[str], list[str]]:
    pack = await a_pack(blob_bytes)
    here, far = ways.plans(pack, [HERE, FAR], [True, False], schemes, until=2000.5)
    return ways_of(here), ways_of(far)


async def test_the_cheapest_way_comes_first() -> None:
    assert await plans(EVERYTHING, SCHEMES) == (
        ["file node", "http node a:80", "http node b:80", "redis redis", "grpc node", "object object"],
        ["http object b:80", "http object a:80", "redis redis", "grpc object", "object object"],
    )


async def test_a_blob_that_is_ours_is_read_here() -> None:
    ways = Ways(SIGNER, "http://a:80")
    assert await plans(ways, ["http"]) == (["http node a:80"], ["http object a:80"])


async def test_a_tiny_blob_comes_by_the_stream_before_http() -> None:
    here, _ = await plans(EVERYTHING, SCHEMES, blob_bytes=64 << 10)
    assert [one.split()[0] for one in here] == ["file", "grpc", "http", "http", "redis", "object"]


@pytest.mark.parametrize(
    ("ways", "schemes", "expected"),
    [
        (EVERYTHING, [], ["grpc"]),
        (EVERYTHING, ["carrier-pigeon", "redis"], ["redis"]),
        (Ways(SIGNER), SCHEMES, ["grpc", "object"]),
    ],
    ids=["earlier workers", "unknown schemes", "what this store has not"],
)
async def test_only_what_the_caller_reads_and_the_store_has(
    ways: Ways, schemes: list[str], expected: list[str]
) -> None:
    here, _ = await plans(ways, schemes)
    assert [one.split()[0] for one in here] == expected


async def test_sources_say_where_bytes_lie_and_what_they_are() -> None:
    pack = await a_pack()
    (plan,) = EVERYTHING.plans(pack, [HERE], [True], SCHEMES, until=2000.5)
    digest = pack.manifest.digest(HERE)
    assert (plan.expert, plan.digest, plan.num_bytes) == (HERE, digest, 1 << 20)
    assert len(plan.checks) == len(piece_checks(bytes(1 << 20)))
    file, url, _, redis, _, stored = plan.sources
    assert file.url == f"/cache/blobs/{digest[:2]}/{digest}"
    assert redis.url == f"premoe:blob:{digest}"
    assert (stored.url, stored.offset) == pack.place(HERE)
    parts = urlsplit(url.url)
    query = dict(parse_qsl(parts.query))
    assert SIGNER.check(parts.path.removeprefix(BLOBS), query) == BlobName(digest, pack.manifest.model_id, HERE)
    assert int(query["until"]) == 2001
