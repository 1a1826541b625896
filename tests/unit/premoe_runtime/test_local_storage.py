"""What only the local store does (durability, atomicity, full disks), URLs, and the mapping of errors."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError

from premoe_runtime.formats.errors import Conflict, Exhausted, InvalidInput, NotFound, Unavailable
from premoe_runtime.storage import LocalStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///data/my%20packs/", "file:///data/my%20packs"),
        ("file://localhost/data", "file:///data"),
        ("/data/packs", "file:///data/packs"),
        ("memory://", "memory://"),
        ("memory://x", "memory://x"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
    ],
)
def test_urls(url: str, expected: str) -> None:
    assert open_store(url).url == expected


def test_messages_name_the_full_address() -> None:
    assert open_store("memory://").at("models/x") == "memory://models/x"
    assert open_store("s3://bucket/a").at("models/x") == "s3://bucket/a/models/x"
    assert open_store("s3://bucket/a").at("") == "s3://bucket/a"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is empty"),
        ("ftp://host/x", "unknown scheme 'ftp'"),
        ("s3://", "no bucket"),
        ("file://host/x", "file:///absolute/path"),
        ("file://", "file:///absolute/path"),
        ("s3://bucket/x?version=1", "no query"),
    ],
)
def test_bad_urls_are_one_clear_line(url: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as error:
        open_store(url)
    assert error.value.reason == "STORE_URL"


def test_a_relative_folder_stays_where_it_was_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("packs")
    monkeypatch.chdir("/")
    store.put("x", b"1")
    assert (tmp_path / "packs" / "x").read_bytes() == b"1"


def test_memory_stores_of_one_name_are_one_store() -> None:
    open_store("memory://shared-name").put("x", b"1")
    assert open_store("memory://shared-name").get("x") == b"1"
    assert not open_store("memory://other-name").exists("x")


def test_reading_creates_no_folder(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "no such")
    assert store.list() == []
    for read in (lambda: store.get("x"), lambda: store.head("x"), lambda: store.get_range("x", 0, 1)):
        with pytest.raises(NotFound, match="no such"):
            read()
    assert not (tmp_path / "no such").exists()


def test_a_file_is_synced_before_it_gets_its_name_and_the_folder_after(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync, replace = os.fsync, os.replace

    def log_sync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        seen.append(f"sync {'folder' if os.path.isdir(name) else 'file'}")
        sync(descriptor)

    def log_replace(old: str, new: Path) -> None:
        seen.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", log_sync)
    monkeypatch.setattr(os, "replace", log_replace)
    store.put("a/x", b"1")
    assert seen == ["sync file", "rename", "sync folder"]


def test_an_unfinished_file_has_another_name_and_no_listing_shows_it(store: LocalStore, tmp_path: Path) -> None:
    with store.writer("a/x") as out:
        out.write(b"half")
        assert store.list() == []
        assert store.list_names("a") == ()
        (name,) = files_below(tmp_path)
        assert name.startswith("store/a/x#")
    assert files_below(tmp_path) == ["store/a/x"]


def test_parallel_writers_of_one_object_end_with_one_whole_version(store: LocalStore, tmp_path: Path) -> None:
    versions = [bytes([value]) * 200_000 for value in range(8)]
    threads = [threading.Thread(target=store.put, args=("x", version)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("x") in versions
    assert files_below(tmp_path) == ["store/x"]


def test_only_one_of_many_creators_wins(store: LocalStore) -> None:
    outcomes: list[str] = []

    def create(value: int) -> None:
        try:
            store.put_if_absent("x", str(value).encode())
            outcomes.append(str(value))
        except Conflict:
            outcomes.append("lost")

    threads = [threading.Thread(target=create, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = [outcome for outcome in outcomes if outcome != "lost"]
    assert winner == [store.get("x").decode()]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("write", ["put", "put_if_absent", "writer", "sync"])
def test_a_full_disk_is_exhausted_and_leaves_nothing(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str, code: int
) -> None:
    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync" if write == "sync" else "write", full)
    writes: dict[str, Callable[[], object]] = {
        "put": lambda: store.put("a/x", b"data"),
        "put_if_absent": lambda: store.put_if_absent("a/x", b"data"),
        "writer": lambda: _stream(store),
        "sync": lambda: store.put("a/x", b"data"),
    }
    with pytest.raises(Exhausted, match=r"no space left while writing .*a/x; free some room") as error:
        writes[write]()
    assert error.value.reason == "DISK_FULL"
    assert files_below(tmp_path) == []


def _stream(store: LocalStore) -> None:
    with store.writer("a/x") as out:
        out.write(b"data")


@pytest.mark.parametrize("link", ["nowhere", "x"])
def test_what_is_no_file_is_named_as_what_it_is(store: LocalStore, tmp_path: Path, link: str) -> None:
    (tmp_path / "store" / "folder").mkdir(parents=True)
    (tmp_path / "store" / "x").symlink_to(link)
    reads: list[Callable[[str], object]] = [
        store.get,
        store.head,
        lambda path: store.get_range(path, 0, 1),
        lambda path: store.read_into(path, 0, [memoryview(bytearray(1))]),
        lambda path: store.copy(path, "target"),
    ]
    for read in reads:
        with pytest.raises(NotFound, match=r"/folder is a folder where a file should be; remove it"):
            read("folder")
        with pytest.raises(NotFound, match=rf"/x is a link to {link}, which is not there; put back"):
            read("x")
        with pytest.raises(NotFound, match=r"/absent: no such object$"):
            read("absent")
    with pytest.raises(NotFound, match="folder where a file"):
        store.put("folder", b"1")
    assert files_below(tmp_path) == []


def test_a_listing_with_a_link_to_itself_says_so(store: LocalStore, tmp_path: Path) -> None:
    store.put("x", b"1")
    (tmp_path / "store" / "loop").symlink_to("loop")
    with pytest.raises(NotFound, match=r"store: a link leads to itself; remove it"):
        store.list()


def test_other_failures_of_the_disk_are_unavailable(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(Unavailable, match=r"/x: Input/output error"):
        store.put("x", b"1")


def test_refused_access_says_so(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "write", refused)
    with pytest.raises(InvalidInput, match="access refused"):
        store.put("x", b"1")


def test_a_server_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match="s3://bucket/x") as error:
        open_store("s3://bucket").get("x")
    assert "\n" not in str(error.value)


def test_moving_a_folder_is_one_rename(store: LocalStore, tmp_path: Path) -> None:
    store.put("staging/k/pack/experts/x", b"1")
    inode = (tmp_path / "store/staging/k/pack/experts/x").stat().st_ino
    store.move_prefix("staging/k/pack", "models/id", last="manifest.json")
    assert (tmp_path / "store/models/id/experts/x").stat().st_ino == inode


def test_free_bytes_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    free = LocalStore(tmp_path / "a" / "b").free_bytes()
    assert free is not None
    assert free > 0
    assert open_store("memory://x").free_bytes() is None


def test_an_unreadable_file_is_refused_access(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, who reads everything: so the local backend's own words are raised in its place."""
    store.put("x", b"1")

    def refused(*_: object) -> object:
        raise GenericError("Generic LocalFileSystem error: Unable to open file /x: Permission denied (os error 13)")

    monkeypatch.setattr(obstore, "get", refused)
    with pytest.raises(InvalidInput, match="access refused") as error:
        store.get("x")
    assert error.value.reason == "ACCESS_REFUSED"


def test_a_file_where_a_folder_should_be_is_named(store: LocalStore) -> None:
    store.put("x", b"1")
    for path in ("x/y", "x/y/z"):
        with pytest.raises(InvalidInput, match=f"/{path}: a file is where its folder should be"):
            store.put(path, b"2")
    assert not store.exists("x/y")


def test_an_unencrypted_endpoint_must_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    with pytest.raises(InvalidInput, match="set AWS_ALLOW_HTTP=true"):
        open_store("s3://bucket")


def test_missing_s3_credentials_are_named(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("x", b"1")

    def without(*_: object) -> object:
        raise GenericError("Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 3s")

    monkeypatch.setattr(obstore, "get", without)
    with pytest.raises(InvalidInput, match="set AWS_ACCESS_KEY_ID"):
        store.get("x")
