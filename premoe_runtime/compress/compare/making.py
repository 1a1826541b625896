"""A pack of one method, made in a process of its own: what it takes of memory is its own, and its death is its own.

Children come from a fork server that has imported what methods import and done nothing else, so that a cell pays for
no import, and the most memory that it takes beyond what it began with is what the method took. They say how far they
are as lines of JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from premoe_runtime.compress.compare.cells import Made, Refused, Size, made_document, made_in
from premoe_runtime.compress.compare.entrants import Entrant
from premoe_runtime.compress.method import Job, Report
from premoe_runtime.compress.registry import METHODS
from premoe_runtime.compress.run import run
from premoe_runtime.compress.share import Share
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.formats.errors import PremoeError, Unavailable
from premoe_runtime.offline.calibration import Example
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store

_PRELOAD = ["premoe_runtime.compress.compare.making"]
_DEATH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made: a method's pack of the one at ``url``, written into the store ``to``."""

    url: str
    method: str
    settings: Any
    data: Mapping[str, tuple[Example, ...]]
    share: float
    seed: int
    device: str
    threads: int | None
    work: str
    to: str

    @classmethod
    def of(cls, entrant: Entrant, job: Job, to: str) -> Order:
        return cls(
            job.old.reader.url,
            entrant.method.name,
            job.settings,
            {task: tuple(examples) for task, examples in job.data.items()},
            job.share.part,
            job.seed,
            job.device,
            job.threads,
            str(job.work),
            to,
        )


Maker = Callable[[Order, Report], Made | Refused]


def make(order: Order, report: Report) -> Made:
    """Carry an order out here. Raises whatever the method raises."""
    started, old = time.monotonic(), PackWeights(open_pack(order.url))
    job = Job(
        old,
        order.data,
        Share(order.share),
        order.settings,
        Path(order.work),
        order.seed,
        order.device,
        order.threads,
        report,
        beside=order.to,
    )
    manifest = run(METHODS[order.method], job, open_store(order.to)).manifest
    return Made(manifest.model_id, Size.of(manifest, old.manifest), time.monotonic() - started)


def make_here(order: Order, report: Report) -> Made | Refused:
    """In this process: of its memory nothing can be told."""
    try:
        return make(order, report)
    except Exception as error:
        return Refused(_why(error))


def make_apart(order: Order, report: Report) -> Made | Refused:
    """In a child, which ends when this process does. Raises Unavailable: none can be started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, order), name="premoe-compress", daemon=True)
    try:
        child.start()
    except OSError as error:
        raise Unavailable(f"no process can be started: {error}", reason="CHILD_FAILED") from error
    theirs.close()
    try:
        while True:
            said, *what = json.loads(ours.recv_bytes())
            if said == "made":
                return made_in(what[0])
            if said == "refused":
                return Refused(what[0])
            getattr(report, said)(*what)
    except (EOFError, OSError):
        child.join(_DEATH_SECONDS)
        return Refused(_death(child.exitcode))
    finally:
        child.kill()
        child.join()
        ours.close()


class _Told:
    """A report that is sent up."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def stage(self, what: str, total: float) -> None:
        self.tell("stage", what, total)

    def advance(self, amount: float) -> None:
        self.tell("advance", amount)

    def note(self, text: str) -> None:
        self.tell("note", text)

    def tell(self, *what: object) -> None:
        self._pipe.send_bytes(json.dumps(what).encode())


def _child(pipe: Connection, order: Order) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    told, before = _Told(pipe), _peak()
    try:
        made = make(order, told)
    except BrokenPipeError:
        return
    except Exception as error:
        told.tell("refused", _why(error))
        return
    told.tell("made", made_document(replace(made, memory=_peak() - before)))


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _why(error: Exception) -> str:
    if isinstance(error, PremoeError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (a fault of the method, not of the data)"


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        hint = ", as it happens when memory runs out" if -code == signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-code).name}{hint}"
    return f"its process ended by itself with exit code {code}"
