from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Callable
from pathlib import Path

import blake3
import pytest
from premoe_expert_store.cache import CacheFolder, NodeCache, given_folder, private_folder
from premoe_expert_store.cache.admission import HALF_LIFE_S

from premoe_runtime.formats.errors import CorruptData, InvalidInput, Unavailable

BLOB = 4096


def make(number: int, num_bytes: int = BLOB) -> tuple[str, bytes]:
    data = random.Random(number).randbytes(num_bytes)
    return blake3.blake3(data).hexdigest(), data


class Clock:
    """Seconds since 1970, one more each time somebody looks."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        self.now += 1
        return self.now


def cache_in(path: Path, blobs: int = 4, clock: Clock | None = None, **options: Callable[[str], bool]) -> NodeCache:
    return NodeCache(given_folder(path), blobs * BLOB, clock=clock or Clock(), **options)


def fill(cache: NodeCache, number: int) -> str:
    """Put a blob in; says its digest. Raises AssertionError when there is no room."""
    digest, data = make(number)
    draft = cache.draft(digest, len(data))
    assert draft is not None
    os.pwrite(draft.fd, data, 0)
    assert cache.keep(draft, digest) == cache.path(digest)
    os.close(draft.fd)
    return digest


def read(cache: NodeCache, digest: str) -> bytes | None:
    opened = cache.open(digest, BLOB)
    if opened is None:
        return None
    try:
        return os.pread(opened.fd, BLOB + 1, 0)
    finally:
        os.close(opened.fd)


def files(path: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(path)) - 1


def test_what_was_kept_is_read(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    digest = fill(cache, 1)
    assert read(cache, digest) == make(1)[1]
    assert cache.holds(digest)
    assert (len(cache), cache.num_bytes) == (1, BLOB)
    assert cache.path(digest) == tmp_path / "blobs" / digest[:2] / digest
    assert cache.path(digest).stat().st_mode & 0o777 == 0o444
    assert read(cache, make(2)[0]) is None
    cache.close()


def test_the_least_used_goes_first_and_the_bound_holds(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    digests = [fill(cache, number) for number in range(4)]
    read(cache, digests[0])
    fill(cache, 4)
    assert [cache.holds(digest) for digest in digests] == [True, False, True, True]
    assert cache.num_bytes == 4 * BLOB
    assert files(tmp_path) == 4
    assert cache.evicted == 1
    cache.close()


def test_held_blobs_stay_and_leased_ones_go_last(tmp_path: Path) -> None:
    leased: set[str] = set()
    cache = cache_in(tmp_path, leased=leased.__contains__)
    digests = [fill(cache, number) for number in range(4)]
    leased.add(digests[0])
    cache.hold(digests[1])
    for number in (4, 5):
        fill(cache, number)
    assert [cache.holds(digest) for digest in digests] == [True, True, False, False]
    for digest in cache.digests():
        cache.hold(digest)
    assert cache.draft(make(6)[0], BLOB) is None
    cache.let_go(digests[0])
    fill(cache, 6)
    assert not cache.holds(digests[0])
    cache.close()


def test_blobs_of_patterns_stay_when_all_others_are_read_once(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    wanted = [fill(cache, number) for number in range(3)]
    cache.favour(dict.fromkeys(wanted, 0.5))
    for number in range(3, 60):
        fill(cache, number)
    assert [cache.holds(digest) for digest in wanted] == [True] * 3
    cache.close()


def test_blobs_that_nobody_waits_for_cost_no_better_ones(tmp_path: Path) -> None:
    clock = Clock()
    cache = cache_in(tmp_path, clock=clock)
    digests = [fill(cache, number) for number in range(4)]
    cache.favour(dict.fromkeys(digests[:2], 1.0))
    assert cache.would_fit(make(9)[0], BLOB, 9) == 0, "who prefetches again and again would read again and again"
    clock.now += 2 * HALF_LIFE_S
    assert cache.would_fit(make(9)[0], BLOB, 9) == 2
    for digest in digests[2:]:
        cache.hold(digest)
    assert cache.would_fit(make(9)[0], BLOB, 9) == 0
    assert cache.draft(make(9)[0], BLOB, polite=True) is None
    assert [cache.holds(digest) for digest in digests] == [True] * 4
    cache.close()


def test_blobs_survive_a_restart_in_the_order_of_their_use(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    digests = [fill(cache, number) for number in range(4)]
    for age, digest in enumerate(reversed(digests)):
        os.utime(cache.path(digest), (2e9 + age, 2e9 + age))
    cache.close()
    again = cache_in(tmp_path)
    assert again.num_bytes == 4 * BLOB
    opened = again.open(digests[0], BLOB)
    assert opened is not None
    assert not opened.checked
    os.close(opened.fd)
    again.checked(digests[0])
    fill(again, 4)
    assert [again.holds(digest) for digest in digests] == [True, True, True, False]
    again.close()


def test_what_is_no_blob_is_removed_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_in(tmp_path)
    digest = fill(cache, 1)
    cache.close()
    torn = make(2)[0]
    for path in ("blobs/ab/notes.txt", f"blobs/{torn[:2]}/{torn}", "arriving/1234", f"blobs/zz/{digest}"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"" if torn in path else b"x")
    again = cache_in(tmp_path)
    assert again.digests() == [digest]
    assert files(tmp_path) == 1
    assert again.num_bytes == BLOB
    assert caplog.text.count("3 files that are no blobs were removed") == 1
    again.close()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "theirs").write_bytes(b"x")
    with pytest.raises(InvalidInput, match="is no cache of PreMoE"):
        given_folder(tmp_path)
    with pytest.raises(InvalidInput, match="cannot be used"):
        given_folder(tmp_path / "blobs" / "theirs")
    assert (tmp_path / "blobs" / "theirs").exists()


def test_a_file_of_another_length_is_dropped(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    digest = fill(cache, 1)
    cache.path(digest).chmod(0o600)
    os.truncate(cache.path(digest), BLOB - 1)
    assert read(cache, digest) is None
    assert not cache.path(digest).exists()
    cache.close()


def test_a_file_that_somebody_removed_is_a_miss(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    digest = fill(cache, 1)
    cache.path(digest).unlink()
    assert read(cache, digest) is None
    assert not cache.holds(digest)
    cache.close()


def test_drafts_count_and_abandoned_ones_leave_nothing(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, blobs=1)
    digest, _ = make(1)
    draft = cache.draft(digest, BLOB)
    assert draft is not None
    assert cache.num_bytes == BLOB
    assert cache.draft(make(2)[0], BLOB) is None
    cache.abandon(draft)
    os.close(draft.fd)
    assert (cache.num_bytes, files(tmp_path)) == (0, 0)
    cache.close()


def test_two_processes_keep_one_bound_and_see_each_others_blobs(tmp_path: Path) -> None:
    first, second = cache_in(tmp_path), cache_in(tmp_path)
    digests = [fill((first, second)[number % 2], number) for number in range(4)]
    assert read(second, digests[0]) == make(0)[1]
    opened = second.open(digests[1], BLOB)
    assert opened is not None
    for number in range(4, 10):
        fill(first, number)
        assert files(tmp_path) <= 4
    assert first.num_bytes == second.num_bytes == 4 * BLOB
    assert first.path(digests[1]).exists(), "the other process holds it"
    os.close(opened.fd)
    second.refresh()
    assert sorted(second.digests()) == sorted(path.name for path in tmp_path.glob("blobs/*/*"))
    for cache in (first, second):
        cache.close()


def test_a_killed_process_gives_its_drafts_back(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, blobs=2)
    pid = os.fork()
    if pid == 0:
        other = cache_in(tmp_path, blobs=2)
        other.draft(make(1)[0], BLOB)
        os._exit(0)
    os.waitpid(pid, 0)
    assert cache.num_bytes == BLOB
    for number in (2, 3):
        fill(cache, number)
    assert (cache.num_bytes, files(tmp_path)) == (2 * BLOB, 2)
    cache.close()


def test_a_full_disk_gives_what_the_cache_has_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_in(tmp_path, blobs=8)
    for number in range(3):
        fill(cache, number)
    allocate = os.posix_fallocate

    def full(fd: int, offset: int, length: int) -> None:
        if files(tmp_path) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    fill(cache, 3)
    assert (len(cache), files(tmp_path)) == (3, 3)
    for digest in cache.digests():
        cache.hold(digest)
    for number in range(4, 7):
        assert cache.draft(make(number)[0], BLOB) is None
    assert (cache.num_bytes, files(tmp_path)) == (3 * BLOB, 3)
    assert caplog.text.count("No space left on device; blobs are served from memory") == 1
    cache.close()


def test_a_folder_of_its_own_goes_with_the_process_or_is_swept_by_the_next(tmp_path: Path) -> None:
    cache = NodeCache(private_folder(BLOB, [tmp_path]), BLOB)
    left = tmp_path / "premoe-blobs-left"
    left.mkdir()
    (left / "premoe-cache").touch()
    living = cache.folder
    other = private_folder(BLOB, [tmp_path])
    assert living.exists()
    assert not left.exists()
    other.close()
    fill(cache, 1)
    cache.close()
    assert list(tmp_path.iterdir()) == []


def test_a_locked_folder_delays_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("premoe_expert_store.cache.folder.LOCK_WAIT_S", 0.05)
    cache = cache_in(tmp_path)
    fd = os.open(tmp_path / "premoe-cache", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    for number in range(3):
        assert cache.draft(make(number)[0], BLOB) is None
    assert caplog.text.count("another process keeps it locked; blobs are served from memory") == 1
    with pytest.raises(Unavailable, match="cannot be looked through: another process keeps it locked"):
        cache_in(tmp_path)
    os.close(fd)
    fill(cache, 1)
    cache.close()


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    cache = cache_in(tmp_path)
    for number in range(20):
        fill(cache, number)
    cache.refresh()
    cache.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    with pytest.raises(CorruptData, match="is no digest"):
        cache.path("../../etc/passwd")
    cache.close()


def test_folders_are_told_apart(tmp_path: Path) -> None:
    folder: CacheFolder = given_folder(tmp_path / "made")
    assert (tmp_path / "made" / "premoe-cache").exists()
    folder.close()
    assert (tmp_path / "made").exists()
