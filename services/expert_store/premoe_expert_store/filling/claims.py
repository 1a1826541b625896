"""Which replica reads a blob out of object storage: whoever claims it in Redis first, as long as it lives.

A claim is a key with a token that ends by itself; its owner prolongs it while it reads, and gives it back only where it
is still its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Protocol

from premoe_dataplane.redis_nodes import Node
from premoe_dataplane.redis_pieces import RedisPieces

from premoe_runtime.formats.errors import Unavailable

CLAIM_MS = 5000
"""How long others wait for an owner that was killed."""

_IF_OWN = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call({}) else return 0 end"
_PROLONG = _IF_OWN.format("'pexpire', KEYS[1], ARGV[2]")
_DROP = _IF_OWN.format("'del', KEYS[1]")


class Claims(Protocol):
    """Blocking; safe from several threads. Methods raise Unavailable and Exhausted."""

    claim_s: float
    """Seconds after which a claim ends that is not prolonged."""

    def take(self, digest: str) -> str | None:
        """The token of a new claim; None where somebody has one."""
        ...

    def prolong(self, digest: str, token: str) -> bool:
        """Whether it is still ours, for as long again."""
        ...

    def drop(self, digest: str, token: str) -> None:
        """Give it back, if it is ours."""
        ...

    def close(self) -> None: ...


class RedisClaims:
    """Implements Claims on the servers of one setting, which blobs are shared out to as their pieces are.

    A server without Lua, or a user without EVAL, only makes claims end by themselves.
    """

    def __init__(self, url: str, *, timeout_s: float = 1.0, connections: int = 16, claim_ms: int = CLAIM_MS) -> None:
        """Nothing is contacted before the first call. Raises InvalidInput (REDIS_URL)."""
        self._pieces = RedisPieces(url, timeout_s=timeout_s, connections=connections)
        self._claim_ms = claim_ms
        self.claim_s = claim_ms / 1000

    def take(self, digest: str) -> str | None:
        token = secrets.token_hex(16)
        answer = self._ask(digest, "SET", key_of(digest), token, "NX", "PX", str(self._claim_ms))
        return token if answer in (b"OK", "OK") else None

    def prolong(self, digest: str, token: str) -> bool:
        return self._ask(digest, "EVAL", _PROLONG, "1", key_of(digest), token, str(self._claim_ms)) == 1

    def drop(self, digest: str, token: str) -> None:
        self._ask(digest, "EVAL", _DROP, "1", key_of(digest), token)

    def close(self) -> None:
        self._pieces.close()

    def _ask(self, digest: str, *command: str) -> object:
        answers: list[object] = []
        key = key_of(digest)

        def ask(node: Node, _: Sequence[str]) -> None:
            with self._pieces.connection(node) as connection:
                connection.send_command(*command)
                answers.append(connection.read_response())

        self._pieces.each(self._pieces.by_node([(key, digest, key)]), ask)
        if not answers:
            raise Unavailable("no Redis has claims of this blob", reason="CACHE_UNAVAILABLE")
        return answers[0]


def key_of(digest: str) -> str:
    return f"premoe:claim:{digest}"
