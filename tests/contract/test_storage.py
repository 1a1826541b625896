"""One suite for every object store: local folder, memory, S3."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers import S3Server, s3_server

from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput, NotFound
from premoe_runtime.storage import WRITE_PART_BYTES, Store, Writer, open_store


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.services)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return (tmp_path / "a store").as_uri()
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    server: S3Server = request.getfixturevalue("s3")
    return f"{server.url}/some/prefix-{uuid.uuid4().hex}"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


def test_an_empty_store_lists_nothing(store: Store) -> None:
    assert store.list() == []
    assert store.list("models") == []
    assert store.list_names() == ()


def test_what_is_put_is_read_back_by_another_client(store: Store, url: str) -> None:
    store.put("a/b c/x.bin", b"0123456789")
    other = open_store(url)
    assert other.get("a/b c/x.bin") == b"0123456789"
    assert other.head("a/b c/x.bin").size == 10
    assert other.exists("a/b c/x.bin")
    assert not other.exists("a/b c")


def test_put_replaces_and_put_if_absent_does_not(store: Store) -> None:
    store.put_if_absent("x", b"first")
    with pytest.raises(Conflict, match="exists already"):
        store.put_if_absent("x", b"second")
    assert store.get("x") == b"first"
    store.put("x", b"third")
    assert store.get("x") == b"third"
    store.put("empty", b"")
    assert store.get("empty") == b""


def test_ranges(store: Store) -> None:
    store.put("x", bytes(range(100)))
    assert store.get_range("x", 10, 5) == bytes(range(10, 15))
    assert store.get_range("x", 99, 1) == bytes([99])
    assert store.get_range("x", 5, 0) == b""


def test_read_range_is_what_is_there(store: Store) -> None:
    store.put("x", bytes(range(100)))
    assert bytes(store.read_range("x", 10, 5)) == bytes(range(10, 15))
    assert bytes(store.read_range("x", 10, 0)) == b""
    with pytest.raises(CorruptData, match="too short"):
        store.read_range("x", 98, 5)


def test_read_into_fills_views_one_after_another(store: Store) -> None:
    store.put("x", bytes(range(100)))
    room = bytearray(20)
    views = [memoryview(room)[10:13], memoryview(room)[0:0], memoryview(room)[0:4]]
    assert store.read_into("x", 50, views) == 7
    assert room[10:13] == bytes([50, 51, 52])
    assert room[0:4] == bytes([53, 54, 55, 56])
    assert store.read_into("x", 50, []) == 0


@pytest.mark.parametrize(("offset", "length"), [(95, 10), (100, 1), (200, 8)])
def test_reading_past_the_end_is_corrupt_data(store: Store, offset: int, length: int) -> None:
    store.put("x", bytes(100))
    with pytest.raises(CorruptData, match="too short") as error:
        store.get_range("x", offset, length)
    assert error.value.reason == "OBJECT_TRUNCATED"
    with pytest.raises(CorruptData, match="too short"):
        store.read_into("x", offset, [memoryview(bytearray(length))])


def test_a_missing_object_is_not_found_by_every_reader(store: Store) -> None:
    store.put("folder/x", b"1")
    room = memoryview(bytearray(1))
    for missing in ("nothing", "folder", "folder/y"):
        for read in (
            lambda path: store.get(path),
            lambda path: store.get_range(path, 0, 1),
            lambda path: store.head(path),
            lambda path: store.copy(path, "target"),
            lambda path: store.read_into(path, 0, [room]),
        ):
            with pytest.raises(NotFound, match=missing):
                read(missing)
    store.delete("nothing")
    store.delete_prefix("nothing")


@pytest.mark.parametrize("path", ["", "/x", "../x", "a/../x", "a//b", ".", "a/", "a\0b"])
def test_paths_that_lead_elsewhere_are_refused(store: Store, path: str) -> None:
    for use in (
        lambda: store.get(path),
        lambda: store.put(path, b""),
        lambda: store.delete(path),
        lambda: store.read_into(path, 0, [memoryview(bytearray(1))]),
        lambda: store.writer(path).__enter__(),
    ):
        with pytest.raises(InvalidInput, match="no object path"):
            use()


def test_lists_are_sorted_and_keep_to_whole_segments(store: Store) -> None:
    for path in ("b/2", "b/10", "bc/1", "a"):
        store.put(path, path.encode())
    assert [info.path for info in store.list()] == ["a", "b/10", "b/2", "bc/1"]
    assert [(info.path, info.size) for info in store.list("b")] == [("b/10", 4), ("b/2", 3)]
    assert store.list_names() == ("a", "b", "bc")
    assert store.list_names("b") == ("10", "2")


def test_a_writer_streams_more_than_one_part(store: Store) -> None:
    part = os.urandom(WRITE_PART_BYTES // 2 + 77)
    with store.writer("big") as out:
        for _ in range(5):
            out.write(part)
        out.write(memoryview(b"tail"))
        assert not store.exists("big")
    assert store.head("big").size == 5 * len(part) + 4
    assert store.get("big") == part * 5 + b"tail"


def test_a_writer_is_done_with_memory_when_write_returns(store: Store) -> None:
    room = bytearray(WRITE_PART_BYTES // 2)
    with store.writer("x") as out:
        for value in range(5):
            room[:] = bytes([value]) * len(room)
            out.write(memoryview(room))
            room[:] = b"\xff" * len(room)
    assert store.get("x") == b"".join(bytes([value]) * len(room) for value in range(5))


def test_a_writer_that_fails_leaves_nothing_and_keeps_what_was_there(store: Store) -> None:
    store.put("old", b"old")
    for path in ("new", "old"):
        with pytest.raises(Conflict, match="producer"), store.writer(path) as out:
            _write_and_fail(out)
    assert [info.path for info in store.list()] == ["old"]
    assert store.get("old") == b"old"


def test_errors_of_the_producer_are_not_taken_for_the_stores(store: Store) -> None:
    with pytest.raises(ValueError, match="mine"), store.writer("x"):
        raise ValueError("mine")
    with pytest.raises(FileNotFoundError), store.writer("x"):
        raise FileNotFoundError


def test_move_prefix(store: Store) -> None:
    for path in ("a/1", "a/sub/2", "a/last.json", "other"):
        store.put(path, path.encode())
    store.move_prefix("a", "models/x", last="last.json")
    assert [info.path for info in store.list()] == ["models/x/1", "models/x/last.json", "models/x/sub/2", "other"]
    assert store.get("models/x/sub/2") == b"a/sub/2"


def test_move_prefix_onto_a_half_filled_one(store: Store) -> None:
    store.put("models/x/1", b"half")
    store.put("a/1", b"whole")
    store.put("a/last.json", b"{}")
    store.move_prefix("a", "models/x", last="last.json")
    assert {info.path: store.get(info.path) for info in store.list()} == {
        "models/x/1": b"whole",
        "models/x/last.json": b"{}",
    }


def test_copies_above_the_servers_limit_are_streamed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("premoe_runtime.storage.base.S3_COPY_LIMIT", 1000)
    data = os.urandom(WRITE_PART_BYTES + 1000)
    store.put("a", data)
    store.copy("a", "b")
    assert store.get("b") == data


def test_delete_prefix(store: Store) -> None:
    for path in ("a/1", "a/b/2", "ab"):
        store.put(path, b"")
    store.delete_prefix("a")
    assert [info.path for info in store.list()] == ["ab"]


def test_bytes_read_are_counted(store: Store) -> None:
    store.put("x", bytes(100))
    store.get("x")
    store.get_range("x", 0, 10)
    store.read_into("x", 0, [memoryview(bytearray(7))])
    assert store.bytes_read == 117


def _write_and_fail(out: Writer) -> None:
    out.write(b"x" * (WRITE_PART_BYTES + 1))
    raise Conflict("the producer fails")
