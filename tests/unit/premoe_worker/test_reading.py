"""Whose bytes are held against sums alone, and whose against their digest."""

from __future__ import annotations

import pytest
from premoe_dataplane.plan import Source
from premoe_servicekit.tls import Tls, tls_of
from premoe_worker.adapters.reading import Reading
from support.certificates import Authority, tls_folder

SOURCES = {
    "file": Source("file", "node", "/cache/blobs/aa/aa"),
    "https": Source("http", "node", "https://store:1/x"),
    "http": Source("http", "node", "http://store:1/x"),
    "redis": Source("redis", "redis", "premoe:blob:aa"),
    "grpc": Source("grpc", "node", "lease"),
    "object": Source("object", "object", "models/x"),
}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    made = tls_of(tls_folder(tmp_path_factory.mktemp("tls"), Authority(), "worker").settings())
    assert made is not None
    return made


def trusted(reading: Reading) -> set[str]:
    return {name for name, source in SOURCES.items() if reading.trusts(source)}


def test_a_mesh_without_tls_trusts_nobody() -> None:
    assert trusted(Reading(redis_url="rediss://cache:6379/0")) == set()


def test_under_tls_whoever_carries_bytes_under_tls_too_or_is_the_kernel(tls: Tls) -> None:
    assert trusted(Reading(tls)) == {"file", "https", "grpc"}


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("rediss://a:1/0", True),
        ("rediss://a:1/0,rediss://b:1/0", True),
        ("rediss+sentinel://a:1,redis-b:1/master", True),
        ("redis://a:1/0", False),
        ("rediss://a:1/0,redis://b:1/0", False),
        ("redis+cluster://a:1", False),
    ],
)
def test_redis_is_trusted_when_all_of_it_is_reached_under_tls(tls: Tls, url: str, safe: bool) -> None:
    assert ("redis" in trusted(Reading(tls, redis_url=url))) is safe
