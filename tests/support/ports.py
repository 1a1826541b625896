"""Ports that a server can have again after a restart."""

from __future__ import annotations

import random
import socket

# Below the range from which Linux takes the ports of outgoing connections: nobody gets one while its server is down.
_RANGE = (20000, 32000)
_TRIES = 100


def stable_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on now and that outgoing connections do not take."""
    for _ in range(_TRIES):
        port = random.SystemRandom().randrange(*_RANGE)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port on {host} between {_RANGE[0]} and {_RANGE[1]}")
