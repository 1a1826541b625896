"""Facts of a machine with nothing wrong, for what judges them."""

from __future__ import annotations

from premoe_local.doctor.facts.control_group import Group
from premoe_local.doctor.facts.machine import Machine, Room

GIB = 1 << 30
GOOD = Machine(
    congestion="cubic",
    congestion_choices=("reno", "cubic"),
    somaxconn=4096,
    memory=Room(64 * GIB, 48 * GIB),
    group=Group(2, 32 * GIB, 8 * GIB, 4.0),
    cores=8,
    shared=Room(GIB, GIB),
    huge_shared="advise",
    files=65536,
    libc="glibc",
    environment={
        "OMP_NUM_THREADS": "4",
        "MALLOC_MMAP_THRESHOLD_": "1073741824",
        "MALLOC_TRIM_THRESHOLD_": "2147483648",
    },
)
