"""All that was asked for, looked at and judged. What no flag names is not spoken to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from premoe_local.doctor.facts import machine as machines
from premoe_local.doctor.finding import Finding, skipped
from premoe_local.doctor.rules import limits, memory, network
from premoe_local.doctor.tls_files import TlsFiles

if TYPE_CHECKING:
    from premoe_local.doctor.facts.store import Bucket

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """What to look at beside this machine; None: not. Times are seconds."""

    folder: Path | None = None
    tls: TlsFiles | None = None
    redis: str | None = None
    store: str | None = None
    expert_store: str | None = None
    timeout: float = 10.0
    """For each server."""
    disk_seconds: float = 2.0
    """For writing, and as much for reading."""


def examine(asked: Asked, say: Callable[[str], None] = lambda what: None) -> list[Finding]:
    """Look and judge, in the order in which it is shown; ``say`` is told what is being looked at.

    Raises InvalidInput for a URL that names nothing.
    """
    say("this machine")
    machine = machines.look()
    say("object store")
    bucket, of_store = _store(asked)
    rest = [*of_store]
    for what, look in (("Redis", _redis), ("expert store", _expert_store), ("disk", _disk), ("TLS files", _tls)):
        say(what)
        rest += look(asked)
    blob_bytes = bucket.blob_bytes if bucket else None
    return [*network.judge(machine), *memory.judge(machine, blob_bytes), *limits.judge(machine), *rest]


def _store(asked: Asked) -> tuple[Bucket | None, list[Finding]]:
    if (url := asked.store) is None:
        return None, [skipped("object store", "give --store URL")]
    from premoe_local.doctor.facts import store
    from premoe_local.doctor.rules import store as rules

    bucket = within(asked.timeout, lambda: store.look(url, asked.timeout / 4)) or store.Bucket(
        url, fault=_silent(url, asked.timeout)
    )
    return bucket, rules.judge(bucket)


def _redis(asked: Asked) -> Iterator[Finding]:
    if (url := asked.redis) is None:
        yield skipped("Redis", "give --redis URL")
        return
    from premoe_local.doctor.facts import redis_server
    from premoe_local.doctor.rules import redis_server as rules

    yield from rules.judge(redis_server.ask(url, asked.timeout / 4))


def _expert_store(asked: Asked) -> Iterator[Finding]:
    if (address := asked.expert_store) is None:
        yield skipped("expert store", "give --expert-store HOST:PORT")
        return
    from premoe_local.doctor.facts import expert_store
    from premoe_local.doctor.rules import expert_store as rules

    peer = within(asked.timeout, lambda: expert_store.ask(address, asked.tls, asked.timeout / 4))
    yield rules.judge(peer or expert_store.Peer(address, fault=_silent(address, asked.timeout)))


def _disk(asked: Asked) -> Iterator[Finding]:
    if asked.folder is None:
        yield skipped("disk", "give --folder PATH")
        return
    from premoe_local.doctor.facts import disk
    from premoe_local.doctor.rules import disk as rules

    yield rules.judge(disk.measure(asked.folder, asked.disk_seconds))


def _tls(asked: Asked) -> Iterator[Finding]:
    if asked.tls is None:
        yield skipped("TLS files", "give --tls-cert, --tls-key and --tls-ca")
        return
    from premoe_local.doctor.facts import tls
    from premoe_local.doctor.rules import tls as rules

    yield rules.judge(tls.examine(asked.tls), time.time())


def within(seconds: float, ask: Callable[[], T]) -> T | None:
    """What ``ask`` gives, or raises; None where it takes longer: a client that goes on trying is left to itself."""
    answers: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    return answers[0] if answers else None


def _silent(where: str, seconds: float) -> str:
    return f"{where} has not answered all questions within {seconds:g} s; --timeout gives it longer"
