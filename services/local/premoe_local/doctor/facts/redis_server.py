"""What a Redis server says of itself, and how long it takes to say anything."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.retry import Retry

from premoe_local.doctor.facts.clock import Clock
from premoe_runtime.formats.errors import InvalidInput

_PINGS = 20


@dataclass(frozen=True, slots=True)
class RedisServer:
    """``fault`` is why it cannot be used at all. What it would not tell is None; sizes are bytes, times seconds."""

    where: str
    fault: str = ""
    version: str = ""
    role: str = ""
    allocator: str = ""
    used: int | None = None
    limit: int | None = None
    """maxmemory; 0: none."""
    policy: str | None = None
    evicted: int | None = None
    save: str | None = None
    append_only: bool | None = None
    reply_limit: int | None = None
    """Bytes of answers waiting for one client at which Redis cuts it off; 0: never."""
    latency: float | None = None
    clock: Clock | None = None


def ask(url: str, seconds: float) -> RedisServer:
    """Ask the server; nothing is written. Raises InvalidInput for a bad URL. A password in it is shown to nobody."""
    where = _where(url)
    try:
        client = redis.Redis.from_url(
            url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 0)
        )
    except ValueError as error:
        raise InvalidInput(f"--redis {where}: {error}; write redis://host:6379/0", reason="REDIS_URL") from None
    try:
        return _answers(client, where)
    except (RedisError, OSError) as error:
        return RedisServer(where, fault=" ".join(str(error).split()) or type(error).__name__)
    finally:
        client.close()


def _answers(client: redis.Redis, where: str) -> RedisServer:
    client.ping()
    info = _told(client.info) or {}
    settings = _settings(client)
    before = time.time()
    told = _told(client.time)
    after = time.time()
    limit = info.get("maxmemory", settings.get("maxmemory"))
    return RedisServer(
        where,
        version=str(info.get("redis_version", "")),
        role=str(info.get("role", "")),
        allocator=str(info.get("mem_allocator", "")),
        used=info.get("used_memory"),
        limit=None if limit is None else int(limit),
        policy=info.get("maxmemory_policy", settings.get("maxmemory-policy")),
        evicted=info.get("evicted_keys"),
        save=settings.get("save"),
        append_only=bool(info["aof_enabled"]) if "aof_enabled" in info else None,
        reply_limit=_reply_limit(settings.get("client-output-buffer-limit")),
        latency=_latency(client),
        clock=Clock.read(before, told[0] + told[1] / 1e6, after) if told else None,
    )


def _told(question: Any, *arguments: Any) -> Any:
    """An answer; None where this user may not ask, as on most servers that others run."""
    with suppress(NoPermissionError, ResponseError):
        return question(*arguments)
    return None


def _settings(client: redis.Redis) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("save", "client-output-buffer-limit", "maxmemory", "maxmemory-policy"):
        found |= cast("dict[str, str]", _told(client.config_get, name) or {})
    return found


def _reply_limit(text: str | None) -> int | None:
    """``normal 0 0 0 slave …`` → the first number after ``normal``."""
    words = (text or "").split()
    return int(words[words.index("normal") + 1]) if "normal" in words else None


def _latency(client: redis.Redis) -> float:
    took = []
    for _ in range(_PINGS):
        begun = time.perf_counter()
        client.ping()
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def _where(url: str) -> str:
    """Host and port, or the socket's path, without user and password."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname or parts.path}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "URL"
