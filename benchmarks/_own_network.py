"""A loopback of one's own, under another congestion control than the system's."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import click

CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_INSIDE = "PREMOE_BENCH_NETWORK"
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1


def congestion_control() -> str:
    """The one in force here."""
    return CONTROL.read_text().strip()


def enter(control: str) -> None:
    """Run this program anew in a network namespace under ``control``; returns there, or at once if it is in force.

    Returns too, with a line on stderr, where namespaces are not to be had.
    """
    if os.environ.pop(_INSIDE, "") == control:
        _raise_loopback()
        CONTROL.write_text(control)
    elif control and control != congestion_control():
        mapped = [] if os.getuid() == 0 else ["--map-root-user"]
        command = ["unshare", "--net", *mapped]
        if shutil.which("unshare") is None or subprocess.run([*command, "true"], check=False).returncode:
            click.echo(f"no network namespace of one's own here: all runs under {congestion_control()}", err=True)
            return
        sys.stdout.flush()
        os.execvpe(command[0], [*command, sys.executable, *sys.argv], {**os.environ, _INSIDE: control})


def _raise_loopback() -> None:
    with socket.socket() as any_socket:
        name = struct.pack("16sh", b"lo", 0)
        _, flags = struct.unpack("16sh", fcntl.ioctl(any_socket, _GET_FLAGS, name))
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh", b"lo", flags | _UP))
