"""Signed addresses: good for one blob, until they end."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_dataplane.signing import BLOBS, SKEW_S, BlobName, Signer, keys_of

from premoe_runtime.formats.errors import Forbidden, InvalidInput
from premoe_runtime.formats.ids import ExpertId

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
TENANTS = st.sampled_from(["", "acme", "b-2"])
NAMES = st.builds(
    BlobName,
    DIGESTS,
    st.text("abc0._-", min_size=1, max_size=9).map(lambda text: f"m{text}"),
    st.builds(ExpertId, st.integers(0, 200), st.integers(0, 2000)),
    TENANTS,
)
NOW = 1_800_000_000
KEY = b"k" * 32


def signer(*keys: bytes, now: float = NOW) -> Signer:
    return Signer(lambda: keys or (KEY,), clock=lambda: now)


def taken_apart(path: str) -> tuple[str, dict[str, str]]:
    parts = urlsplit(path)
    return parts.path.removeprefix(BLOBS), dict(parse_qsl(parts.query, strict_parsing=True))


@given(NAMES, st.integers(-SKEW_S, 10_000))
def test_an_address_names_its_blob_until_it_ends(name: BlobName, left: int) -> None:
    assert signer().check(*taken_apart(signer().path(name, NOW + left))) == name


@given(NAMES, st.integers(SKEW_S + 1, 10_000))
def test_an_address_ends(name: BlobName, late: int) -> None:
    with pytest.raises(Forbidden, match="ended") as caught:
        signer().check(*taken_apart(signer().path(name, NOW - late)))
    assert caught.value.reason == "URL_EXPIRED"


@given(NAMES, NAMES, st.integers(1, 99), st.integers(1, 99))
def test_a_signature_is_good_for_no_other_blob_and_no_other_end(
    name: BlobName, other: BlobName, left: int, other_left: int
) -> None:
    _, query = taken_apart(signer().path(name, NOW + left))
    other_digest, other_query = taken_apart(signer().path(other, NOW + other_left))
    if (name, left) == (other, other_left):
        return
    with pytest.raises(Forbidden) as caught:
        signer().check(other_digest, {**other_query, "sig": query["sig"]})
    assert caught.value.reason == "URL_FORGED"


@pytest.mark.parametrize(
    "change",
    [
        {"model": ""},
        {"model": "a\nb"},
        {"layer": "-1"},
        {"layer": ""},
        {"expert": "x"},
        {"until": "1e9"},
        {"until": "9" * 40},
        {"tenant": "A/.."},
        {"layer": "٣"},
    ],
)
def test_an_address_that_could_never_work_is_told_apart(change: dict[str, str]) -> None:
    digest, query = taken_apart(signer().path(BlobName("0" * 64, "m", ExpertId(0, 0)), NOW))
    with pytest.raises(InvalidInput, match="address of a blob") as caught:
        signer().check(digest, {**query, **change})
    assert caught.value.reason == "URL_INVALID"


def test_a_digest_that_is_none_and_a_missing_signature() -> None:
    digest, query = taken_apart(signer().path(BlobName("0" * 64, "m", ExpertId(0, 0)), NOW))
    with pytest.raises(InvalidInput):
        signer().check("../etc/passwd", query)
    with pytest.raises(Forbidden):
        signer().check(digest, {name: value for name, value in query.items() if name != "sig"})
    with pytest.raises(Forbidden):
        signer().check(digest, {**query, "sig": "ä"})


def test_keys_can_be_replaced_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{'n' * 32}\n{KEY.decode()}\n\n")
    keys = keys_of(path)()
    assert keys == (b"n" * 32, KEY)
    name = BlobName("0" * 64, "m", ExpertId(0, 0))
    old, new = signer(), signer(*keys)
    assert new.check(*taken_apart(old.path(name, NOW))) == name
    with pytest.raises(Forbidden):
        old.check(*taken_apart(new.path(name, NOW)))


def test_random_keys_are_of_one_process() -> None:
    one, other = keys_of(None), keys_of(None)
    assert one() == one() != other()


@pytest.mark.parametrize("text", ["", "\n", "short", f"{'k' * 32}\nshort\n"])
def test_a_key_file_without_good_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(InvalidInput, match="openssl rand -hex 32") as caught:
        keys_of(path)
    assert caught.value.reason == "URL_KEY_INVALID"
    with pytest.raises(InvalidInput, match="cannot be read"):
        keys_of(tmp_path / "none")
