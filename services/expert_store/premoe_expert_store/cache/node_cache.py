"""Blobs in files of this node, within a bound: found, held, made room for, dropped."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from premoe_expert_store.cache.admission import Candidate, Use, room_below, victims
from premoe_expert_store.cache.folder import Busy, CacheFolder
from premoe_expert_store.cache.index import ARRIVING, blob_path, rebuild
from premoe_runtime.formats.errors import Unavailable

BATCHES = 64
"""Making room frees a 64th of the cache at least: who must go is sorted out, and looked for, that much more rarely."""
TOUCH_S = 30.0
"""How often a file is told at most that it is used."""
SAY_S = 600.0
"""How often it is said at most that blobs are not kept."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = logging.getLogger(__name__)


class Opened(NamedTuple):
    """A blob's file. ``checked``: whether this process has held it against its digest."""

    fd: int
    checked: bool


@dataclass(slots=True, eq=False)
class Draft:
    """Room for a blob that arrives: a file of its length under no blob's name, held until it is kept or dropped."""

    path: Path
    fd: int
    num_bytes: int


@dataclass(slots=True)
class _Entry:
    num_bytes: int
    use: Use
    used: float
    """Seconds since 1970."""
    checked: bool = False
    touched: float = 0.0


class NodeCache:
    """Safe from several threads. What makes room, keeps or drops blocks; nothing else waits for that.

    ``limit_bytes`` bounds blobs and drafts of all processes in the folder together. Blobs that are held are not
    dropped, by any process; ``leased`` tells of others that go last. ``clock`` gives seconds since 1970. Raises
    Unavailable when the folder cannot be looked through.
    """

    def __init__(
        self,
        folder: CacheFolder,
        limit_bytes: int,
        *,
        leased: Callable[[str], bool] = lambda digest: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._leased = leased
        self._clock = clock
        self._room = threading.Lock()
        """For who changes what lies in the folder, which may take long; ``_lock`` is for what is known of it."""
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._held: Counter[str] = Counter()
        self._shares: Mapping[str, float] = {}
        self._changes = -1
        self._said_full = float("-inf")
        self.evicted = 0
        """Blobs that this process dropped for others."""
        self.version = 0
        """Counts what came and went, as far as this process knows."""
        try:
            with self._alone():
                self._look()
        except (OSError, Busy) as error:
            self._folder.close()
            raise Unavailable(
                f"cache folder {folder.path} cannot be looked through: {_why(error)}; try again, or give another one",
                reason="CACHE_FOLDER",
            ) from error

    @property
    def limit_bytes(self) -> int:
        return self._limit

    @property
    def folder(self) -> Path:
        return self._folder.path

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Of blobs and drafts, of all processes in the folder."""
        return self._folder.ledger()[1]

    @property
    def age_s(self) -> float:
        """Seconds since the blob was used that was not for longest."""
        now = self._clock()
        return max(0.0, now - min((one.used for one in list(self._entries.values())), default=now))

    def path(self, digest: str) -> Path:
        return self._folder.path / blob_path(digest)

    def holds(self, digest: str) -> bool:
        """Whether the blob is there, as far as this process knows; another one may have dropped it."""
        return digest in self._entries

    def lacks(self, digest: str) -> bool:
        """Whether the blob is not there, for certain: no other process puts blobs into this folder."""
        return self._folder.private and digest not in self._entries

    def has_checked(self, digest: str) -> bool:
        """Whether the blob is there, as far as this process knows, which has held it against its digest."""
        entry = self._entries.get(digest)
        return entry is not None and entry.checked

    def digests(self) -> list[str]:
        """Of all blobs."""
        return list(self._entries)

    def hold(self, digest: str) -> None:
        """Keep a blob until it is let go as often; it need not be there yet."""
        with self._lock:
            self._held[digest] += 1

    def let_go(self, digest: str) -> None:
        with self._lock:
            self._held[digest] -= 1
            if self._held[digest] <= 0:
                del self._held[digest]

    def favour(self, shares: Mapping[str, float]) -> None:
        """Shares of live patterns that want blobs, by digest, from now on; 0 for all others."""
        self._shares = shares
        for digest, entry in list(self._entries.items()):
            with self._lock:
                entry.use = Use(entry.use.fame, shares.get(digest, 0.0))

    def open(self, digest: str, num_bytes: int) -> Opened | None:
        """A blob's file for reading, which the caller closes, or None. Counts as a use.

        One of another length is dropped.
        """
        path = self.path(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._gone(digest)
            return None
        if os.fstat(fd).st_size != num_bytes:
            os.close(fd)
            self.drop(digest)
            return None
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # others do not drop it then
        return Opened(fd, self._use(digest, num_bytes, path))

    def checked(self, digest: str) -> None:
        """Remember that the file's bytes are those of its digest."""
        with self._lock:
            if (entry := self._entries.get(digest)) is not None:
                entry.checked = True

    def draft(self, digest: str, num_bytes: int, *, polite: bool = False) -> Draft | None:
        """Room for a blob, others dropped where that makes it. None when there is none, or the disk is full or broken.

        ``polite``: for a blob that nobody waits for, only blobs that are worth less are dropped.
        """
        if num_bytes > self._limit:
            return None
        try:
            with self._alone():
                if not self._make_room(digest, num_bytes, polite):
                    return None
                draft = self._new_file(num_bytes)
            return self._reserved(draft, polite)
        except (OSError, Busy) as error:
            self._say(error)
        return None

    def would_fit(self, digest: str, num_bytes: int, wanted: int) -> int:
        """For how many of ``wanted`` blobs like this one, which nobody waits for, room could be made now."""
        free = self._limit - self.num_bytes
        if free < wanted * num_bytes:  # who must go is looked for only then
            free += room_below(self._candidates(), self._worth(digest))
        return min(wanted, free // num_bytes)

    def keep(self, draft: Draft, digest: str) -> Path | None:
        """Give a draft, whose bytes were checked, its name; None, and it stays without, when that fails.

        Its descriptor stays the caller's.
        """
        path = self.path(digest)
        try:
            with self._alone():
                path.parent.mkdir(exist_ok=True)
                before = _size(path)
                os.fchmod(draft.fd, 0o444)
                os.rename(draft.path, path)
                self._took(-before)
                fcntl.flock(draft.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                now = self._clock()
                use = Use.first(now, self._shares.get(digest, 0.0))
                with self._lock:
                    self._entries[digest] = _Entry(draft.num_bytes, use, now, checked=True, touched=now)
                    self.version += 1
            return path
        except (Busy, OSError) as error:
            self._say(error)
            return None

    def abandon(self, draft: Draft) -> None:
        """Drop a draft that was not kept. Its descriptor stays the caller's, who closes it now."""
        with suppress(OSError, Busy), self._alone():
            os.unlink(draft.path)
            self._took(-draft.num_bytes)

    def drop(self, digest: str) -> None:
        """Drop a blob whose bytes turned out wrong, whoever holds it."""
        with suppress(Busy), self._alone():
            self._unlink(digest)

    def refresh(self) -> None:
        """Look through the folder where other processes have changed it."""
        with suppress(Busy, OSError):
            if not self._folder.private and self._folder.ledger()[0] != self._changes:
                with self._alone():
                    self._look()

    def close(self) -> None:
        self._folder.close()

    def _alone(self) -> _Alone:
        return _Alone(self._room, self._folder)

    def _use(self, digest: str, num_bytes: int, path: Path) -> bool:
        now = self._clock()
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:  # of another process
                use = Use.first(now, self._shares.get(digest, 0.0))
                entry = self._entries[digest] = _Entry(num_bytes, use, now)
                self.version += 1
            else:
                entry.use, entry.used = entry.use.again(now), now
            touch = now - entry.touched > TOUCH_S
            entry.touched = now if touch else entry.touched
        if touch:
            with suppress(OSError):
                os.utime(path, (now, now))
        return entry.checked

    def _worth(self, digest: str) -> float:
        return Use.first(self._clock(), self._shares.get(digest, 0.0)).worth

    def _candidates(self) -> Iterator[Candidate]:
        for digest, entry in list(self._entries.items()):
            if digest not in self._held:
                yield Candidate(digest, entry.num_bytes, entry.use.worth, self._leased(digest))

    def _make_room(self, digest: str, num_bytes: int, polite: bool) -> bool:
        """Drop what has to go until ``num_bytes`` fit. Alone."""
        changes, taken = self._folder.ledger()
        if taken + num_bytes <= self._limit:
            return True
        if changes != self._changes:
            self._look()
            taken = self._folder.ledger()[1]
        needed = taken + num_bytes - self._limit
        if needed <= 0:
            return True
        if polite and room_below(self._candidates(), self._worth(digest)) < needed:
            return False
        return self._evict(needed) >= needed

    def _evict(self, needed: int) -> int:
        """Bytes freed. Alone."""
        freed = 0
        for victim in victims(self._candidates(), max(needed, self._limit // BATCHES)):
            if not _is_held(self.path(victim)):
                freed += self._unlink(victim)
                self.evicted += 1
        return freed

    def _new_file(self, num_bytes: int) -> Draft:
        """A file of that length, which counts from now on. Alone."""
        path = self._folder.path / ARRIVING / secrets.token_hex(12)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, num_bytes)
            self._took(num_bytes)
        except OSError:
            os.close(fd)
            os.unlink(path)
            raise
        return Draft(path, fd, num_bytes)

    def _reserved(self, draft: Draft, polite: bool) -> Draft:
        """The draft, once the disk has given it its bytes: writing to mapped memory could not report a full one."""
        try:
            while True:
                try:
                    os.posix_fallocate(draft.fd, 0, draft.num_bytes)
                    return draft
                except OSError as error:
                    if polite or error.errno not in _FULL:
                        raise
                    with self._alone():
                        # Others fill this disk too: what we give up may be enough.
                        if not self._evict(draft.num_bytes):
                            raise
        except (OSError, Busy):
            self.abandon(draft)
            os.close(draft.fd)
            raise

    def _unlink(self, digest: str) -> int:
        """Bytes that this gives back. Alone."""
        path = self.path(digest)
        self._gone(digest)
        freed = _size(path)
        with suppress(OSError):
            os.unlink(path)
            self._took(-freed)
        return freed

    def _gone(self, digest: str) -> None:
        with self._lock:
            self.version += self._entries.pop(digest, None) is not None

    def _took(self, num_bytes: int) -> None:
        changes, taken = self._folder.ledger()
        self._folder.write_ledger(changes + 1, taken + num_bytes)
        if self._changes == changes:
            self._changes = changes + 1

    def _look(self) -> None:
        """Make the index that of the folder. Alone."""
        kept, foreign = rebuild(self._folder.found())
        for path in foreign:
            with suppress(OSError):
                os.unlink(self._folder.path / path)
        if foreign:
            log.warning("cache folder %s: %d files that are no blobs were removed", self._folder.path, len(foreign))
        new = {
            digest: _Entry(one.num_bytes, Use.first(one.used, self._shares.get(digest, 0.0)), one.used)
            for digest, one in kept.items()
        }
        with self._lock:
            self._entries = {digest: self._entries.get(digest, one) for digest, one in new.items()}
            self.version += 1
        self._changes = self._folder.ledger()[0]
        taken = sum(one.num_bytes for one in kept.values()) + self._folder.arriving_bytes()
        self._folder.write_ledger(self._changes, taken)

    def _say(self, error: Exception) -> None:
        """Why blobs are not kept, now and then."""
        if self._clock() - self._said_full > SAY_S:
            log.warning("cache folder %s: %s; blobs are served from memory", self._folder.path, _why(error))
            self._said_full = self._clock()


class _Alone:
    """No other thread, then no other process. Raises Busy."""

    def __init__(self, lock: threading.Lock, folder: CacheFolder) -> None:
        self._lock, self._locked = lock, folder.locked()

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._locked.__enter__()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *error: object) -> None:
        try:
            self._locked.__exit__(None, None, None)
        finally:
            self._lock.release()


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "another process keeps it locked"


def _size(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def _is_held(path: Path) -> bool:
    """Whether another process holds a blob."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
