from __future__ import annotations

import io

from premoe_worker.jobs.progress import EVERY_S, Lines


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_line_every_few_seconds() -> None:
    clock, out = Clock(), io.StringIO()
    lines = Lines("packing", out=out, clock=clock)
    lines.total(64 << 20)
    lines.stage("layer-000")
    lines.advance(16 << 20)
    assert out.getvalue() == ""
    clock.now += EVERY_S
    lines.advance(16 << 20)
    lines.advance(1 << 20)
    assert out.getvalue() == "packing layer-000: 32 of 64 MiB, 6 MiB/s\n"


def test_other_things_than_bytes_are_counted() -> None:
    clock, out = Clock(), io.StringIO()
    lines = Lines("profiling add", unit="prompts", out=out, clock=clock)
    lines.total(40)
    clock.now += 2 * EVERY_S
    lines.advance(8)
    assert out.getvalue() == "profiling add: 8 of 40 prompts, 0.8 a second\n"
