"""What `premoe doctor` finds out: of a machine by its files, of a disk, of TLS files."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from premoe_local.doctor.examination import within
from premoe_local.doctor.facts import disk, machine, tls
from premoe_local.doctor.facts.control_group import Group, group_of
from premoe_local.doctor.facts.machine import Room
from premoe_local.doctor.tls_files import TlsFiles
from support.certificates import Authority, TlsFolder, tls_folder

from premoe_runtime.formats.errors import InvalidInput

GIB = 1 << 30


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {
    "proc/sys/net/ipv4/tcp_congestion_control": "bbr\n",
    "proc/sys/net/ipv4/tcp_available_congestion_control": "reno bbr cubic\n",
    "proc/sys/net/core/somaxconn": "4096\n",
    "proc/meminfo": "MemTotal:       65536 kB\nMemFree:  1 kB\nMemAvailable:   32768 kB\nHugePages_Total:       0\n",
    "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size [advise] never deny force\n",
    "dev/shm/something": "",
    "dev/infiniband/uverbs0": "",
}


def test_a_machine_is_read_from_its_files(tmp_path: Path) -> None:
    given = {"OMP_NUM_THREADS": "2", "GLIBC_TUNABLES": "", "SECRET": "s3cret"}
    found = machine.look(tree(tmp_path, MACHINE), given)
    assert (found.congestion, found.congestion_choices, found.somaxconn) == ("bbr", ("reno", "bbr", "cubic"), 4096)
    assert found.memory == Room(64 << 20, 32 << 20)
    assert (found.huge_shared, found.has_rdma) == ("advise", True)
    assert found.shared is not None
    assert found.environment == {"OMP_NUM_THREADS": "2"}


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = machine.look(tmp_path, {})
    assert (found.congestion, found.somaxconn, found.memory, found.group) == ("", None, Room(0, 0), Group())
    assert (found.shared, found.huge_shared, found.environment) == (None, "", {})


def test_this_machine() -> None:
    found = machine.look()
    assert found.memory.size > found.memory.free > 0
    assert found.cores >= 1


V2 = {"proc/self/cgroup": "0::/pods/one\n", "sys/fs/cgroup/cgroup.controllers": "cpu memory\n"}
V1 = {"proc/self/cgroup": "9:name=systemd:/\n4:memory:/pods/one\n1:cpu,cpuacct:/pods/one\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Group()),
        ({**V2, "sys/fs/cgroup/pods/one/memory.max": "max\n"}, Group(2)),
        (
            {
                **V2,
                "sys/fs/cgroup/pods/one/memory.max": "2000\n",
                "sys/fs/cgroup/pods/one/memory.current": "900\n",
                "sys/fs/cgroup/pods/one/memory.stat": "anon 500\ninactive_file 300\n",
                "sys/fs/cgroup/pods/one/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/pods/cpu.max": "max 100000\n",
            },
            Group(2, 2000, 600, 1.5),
        ),
        (  # the least of those around it
            {
                **V2,
                "sys/fs/cgroup/pods/one/memory.max": "2000\n",
                "sys/fs/cgroup/pods/one/memory.current": "900\n",
                "sys/fs/cgroup/pods/memory.max": "1000\n",
                "sys/fs/cgroup/pods/memory.current": "950\n",
            },
            Group(2, 1000, 950),
        ),
        (  # a container sees its own group as the root, and may be told the path outside
            {**V2, "sys/fs/cgroup/memory.max": "7\n", "sys/fs/cgroup/memory.current": "5\n"},
            Group(2, 7, 5),
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/pods/one/memory.limit_in_bytes": "4096\n",
                "sys/fs/cgroup/memory/pods/one/memory.usage_in_bytes": "1024\n",
                "sys/fs/cgroup/memory/pods/one/memory.stat": "cache 5\ntotal_inactive_file 24\n",
                "sys/fs/cgroup/cpu/pods/one/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/pods/one/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            },
            Group(1, 4096, 1000, 0.5),
        ),
        ({"proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/cgroup.controllers": ""}, Group(2)),
    ],
)
def test_what_a_control_group_may_take(tmp_path: Path, files: dict[str, str], expected: Group) -> None:
    assert group_of(tree(tmp_path, files)) == expected


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    found = disk.measure(tmp_path, 0.01)
    assert found.num_bytes >= disk.LEAST_BYTES
    assert found.read > 0
    assert found.written > 0
    assert list(tmp_path.iterdir()) == []


def test_a_measurement_ends_when_its_time_is_over(tmp_path: Path) -> None:
    ticks = iter(range(10**6))
    found = disk.measure(tmp_path, 5.0, clock=lambda: float(next(ticks)))
    assert found.num_bytes < disk.MOST_BYTES


def test_a_folder_that_cannot_be_measured_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nowhere: no such object" in disk.measure(tmp_path / "nowhere", 0.01).fault

    def full(descriptor: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    assert "no space left" in disk.measure(tmp_path, 0.01).fault
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = os.open

    def refusing(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return opening(path, flags, mode)

    monkeypatch.setattr(os, "open", refusing)
    found = disk.measure(tmp_path, 0.01)
    assert (found.fault, list(tmp_path.iterdir())) == ("", [])


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> TlsFolder:
    return tls_folder(tmp_path / "tls", authority, "worker.premoe.svc")


def examined(files: TlsFolder) -> tls.Certificate:
    folder = files.folder
    return tls.examine(TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt"))


def test_files_that_fit_say_when_they_end(files: TlsFolder) -> None:
    found = examined(files)
    assert found.fault == ""
    assert found.ends is not None
    assert found.authority_ends is not None
    assert 0 < found.ends - time.time() < 1.1 * 86_400 < found.authority_ends - time.time()


def replace_file(place: Path, data: bytes) -> None:
    place.unlink()
    place.write_bytes(data)


def test_each_fault_of_the_files_is_one_line(files: TlsFolder, authority: Authority) -> None:
    other, folder = authority.issue("other"), files.folder
    strange, expired = Authority("another").issue("worker"), authority.issue("worker", days=-1)
    faults: list[tuple[Callable[[], None], str]] = [
        (lambda: files.write(expired, authority.pem), "has expired"),
        (lambda: files.write(strange, authority.pem), "does not vouch for it"),
        (lambda: replace_file(folder / "tls.key", other.key), "does not belong to"),
        (lambda: replace_file(folder / "ca.crt", b"no"), "no certificates in PEM"),
        (lambda: (folder / "tls.crt").unlink(), "cannot be read"),
    ]
    for make, told in faults:
        make()
        fault = examined(files).fault
        assert told in fault
        assert "\n" not in fault


def test_who_never_answers_is_left_alone() -> None:
    assert within(0.01, lambda: time.sleep(5)) is None
    assert within(5, lambda: "here") == "here"
    with pytest.raises(InvalidInput):
        within(5, raising)


def raising() -> None:
    raise InvalidInput("bad")
