from __future__ import annotations

from premoe_local.revival import Revival

from premoe_runtime.formats.errors import Unavailable


class Worker:
    name = "worker-1"

    def __init__(self) -> None:
        self.dead = False
        self.starts: list[tuple[str, ...]] = []

    def check(self) -> None:
        if self.dead:
            raise Unavailable("worker-1 stopped by signal SIGKILL: it said nothing", reason="PROCESS_EXITED")

    def start_again(self, *arguments: str) -> None:
        self.dead = False
        self.starts.append(arguments)


def test_a_worker_that_does_not_last_is_started_again_later_and_later() -> None:
    now, worker, said = [0.0], Worker(), list[str]()
    revival = Revival(worker, ("--port", "1"), lambda name, line: said.append(f"{name} {line}"), lambda: now[0])
    waited = []
    for _ in range(9):
        worker.dead, died = True, now[0]
        while worker.dead:
            revival.tend()
            now[0] += 0.5
        waited.append(now[0] - 0.5 - died)
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert worker.starts == [("--port", "1")] * 9
    assert said[1] == "worker-1 worker-1 stopped by signal SIGKILL: it said nothing; starting it again in 2 s"
    assert len(said) == 9
    now[0] += 100.0
    revival.tend()
    worker.dead = True
    revival.tend()
    assert said[-1].endswith("again in 1 s")
