"""Redis as a cache of expert blobs."""

from __future__ import annotations

from premoe_local.console import human_bytes
from premoe_local.doctor.facts.redis_server import RedisServer
from premoe_local.doctor.finding import Finding, ok, skipped
from premoe_local.doctor.rules import clock as clocks

PIECE_BYTES = 1_048_512
WINDOW = 4
GOOD_POLICIES = ("allkeys-lfu", "allkeys-lru")
FAR_S = 2e-3
_HIDDEN = "this server does not let us ask"
_REDIS = "data-plane.md §3"


def judge(server: RedisServer) -> list[Finding]:
    if server.fault:
        why = "every expert then comes from object storage: 3 to 4.6 GB/s in pieces is lost; nothing fails"
        change = "check address, password and TLS (rediss://), and that the server runs"
        return [Finding("Redis", "error", f"{server.where}: {server.fault}", why, change, _REDIS)]
    found = [
        _server(server),
        _limit(server),
        _policy(server),
        _persistence(server),
        _replies(server),
        _allocator(server),
    ]
    if server.latency is not None:
        found.append(_latency(server.latency))
    if server.clock is not None:
        found.append(clocks.judge("Redis", server.clock))
    return found


def _server(server: RedisServer) -> Finding:
    told = f"{server.where}, version {server.version or 'not told'}" + (f", {server.role}" if server.role else "")
    if server.role in ("slave", "replica"):
        why = "a replica refuses writes: nothing that is read from object storage gets into the cache"
        return Finding("Redis", "error", told, why, "give the primary's address", "no factor: it is a failure")
    return ok("Redis", told)


def _limit(server: RedisServer) -> Finding:
    check = "Redis maxmemory"
    if server.limit is None:
        return skipped(check, _HIDDEN)
    if server.limit:
        used = "" if server.used is None else f"{human_bytes(server.used)} of "
        return ok(check, f"{used}{human_bytes(server.limit)} used")
    return Finding(
        check,
        "warning",
        "no limit",
        "the cache grows with every expert that anybody reads until the kernel kills the server; pieces take 1.00 "
        "times their size, whole values up to 1.36 times",
        "CONFIG SET maxmemory 8gb (and in redis.conf): what is free for it, less a tenth",
        _REDIS,
    )


def _policy(server: RedisServer) -> Finding:
    check, policy = "Redis maxmemory-policy", server.policy
    if policy is None:
        return skipped(check, _HIDDEN)
    if policy in GOOD_POLICIES:
        return ok(check, policy)
    change = "CONFIG SET maxmemory-policy allkeys-lfu (and in redis.conf)"
    if policy.startswith("allkeys"):
        why = "it evicts without looking at what is used, so hot experts go too; lfu and lru take 1.4 GB/s of writes"
        return Finding(check, "warning", policy, why, change, _REDIS)
    why = (
        "once full it refuses every write (pieces carry no expiry), so what was not cached by then never is; "
        "allkeys-lfu takes 1.4 GB/s of writes and evicts"
    )
    return Finding(check, "error" if server.limit else "warning", policy, why, change, _REDIS)


def _persistence(server: RedisServer) -> Finding:
    check = "Redis persistence"
    if server.save is None and server.append_only is None:
        return skipped(check, _HIDDEN)
    on = [f"save {server.save!r}"] if server.save else []
    on += ["appendonly yes"] if server.append_only else []
    if not on:
        return ok(check, "off" if server.save is not None else "appendonly no; save is not told")
    return Finding(
        check,
        "warning",
        ", ".join(on),
        "a snapshot forks the server, and what is written meanwhile doubles its memory; a cache comes back from object "
        "storage",
        'CONFIG SET save "" and CONFIG SET appendonly no (and in redis.conf)',
        _REDIS,
    )


def _replies(server: RedisServer) -> Finding:
    check, limit = "Redis output buffers", server.reply_limit
    if limit is None:
        return skipped(check, _HIDDEN)
    need = WINDOW * PIECE_BYTES
    if limit == 0 or limit >= 2 * need:
        told = "no limit" if limit == 0 else human_bytes(limit)
        return ok(check, f"{told} a client; ours have at most {WINDOW} pieces of 1 MiB under way")
    return Finding(
        check,
        "error",
        f"{human_bytes(limit)} a client",
        f"{WINDOW} pieces of 1 MiB are under way on one connection, and Redis cuts off whom so much waits for: reads "
        "break off and go to object storage",
        'CONFIG SET client-output-buffer-limit "normal 0 0 0" (and in redis.conf)',
        _REDIS,
    )


def _allocator(server: RedisServer) -> Finding:
    return skipped(
        "Redis MALLOC_CONF",
        f"{server.allocator or 'the allocator'}: its settings cannot be seen from here",
        "values above 1 MiB are answered at 5.5 GB/s with it and at 1.9 without (16 MB); pieces never pay that",
        "start redis-server with MALLOC_CONF=oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1 where others "
        "keep large values in it",
        _REDIS,
    )


def _latency(seconds: float) -> Finding:
    check, found = "Redis latency", f"{seconds * 1e3:.2f} ms"
    if seconds < FAR_S:
        return ok(check, found)
    speed = WINDOW * PIECE_BYTES / seconds / 1e9
    return Finding(
        check,
        "warning",
        found,
        f"with {WINDOW} pieces under way a stream carries {speed:.1f} GB/s at most, against 3 to 4.6 on one machine",
        "put Redis into the zone of the workers, and see what else keeps it busy (redis-cli --latency, SLOWLOG GET)",
        "data-plane.md §3 and §13, computed",
    )
