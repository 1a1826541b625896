"""The addresses behind a name in DNS, as gRPC targets."""

from __future__ import annotations

import asyncio
import ipaddress
import socket


async def look_up(host: str, port: int) -> list[str]:
    """All addresses of a name, of the family that the system puts first. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family = found[0][0]
    return sorted({str(address[0]) for kind, _, _, _, address in found if kind == family})


def join(address: str, port: int | str) -> str:
    """``address:port``, with the brackets that an IPv6 address needs."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
