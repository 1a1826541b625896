"""Which Redis has a piece: one server, several that share by digest, a Sentinel's master, or a Cluster's nodes.

redis://user:password@host:6379/0               rediss:// is TLS, its files in the query as redis-py names them
redis://one:6379/0,redis://two:6379/0           several
redis+sentinel://host:26379,host:26379/master/0 the ACL user of the Sentinels: ?sentinel_username=, sentinel_password=
redis+cluster://host:6379,host:6379             rediss+sentinel:// and rediss+cluster:// are TLS
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.exceptions import RedisClusterException
from redis.sentinel import Sentinel, SentinelConnectionPool

from premoe_dataplane.rendezvous import home
from premoe_runtime.formats.errors import InvalidInput

CONNECT_TIMEOUT_S = 0.5
_SEPARATOR = re.compile(r",(?=(?:rediss?(?:\+[a-z]+)?|unix)://)")
_SENTINEL_PORT, _REDIS_PORT = 26379, 6379


class Connection(Protocol):
    """What we use of redis-py's connection, which it leaves untyped."""

    _sock: Any
    socket_timeout: float | None

    def send_command(self, *command: str | bytes | memoryview) -> None: ...
    def read_response(self) -> object: ...
    def disconnect(self) -> None: ...


class Pool(Protocol):
    """And of its pools."""

    def get_connection(self) -> Connection: ...
    def release(self, connection: Connection) -> None: ...
    def disconnect(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Node:
    """A server as it is named in messages, without passwords, and connections to it."""

    where: str
    pool: Pool


class Nodes(Protocol):
    """The servers behind one setting. Methods other than ``close`` raise redis-py's errors."""

    by_key: bool
    """Whether each key has its own node, so that no command may name two."""

    def of(self, digest: str, key: str) -> Node | None:
        """Who has ``key`` of blob ``digest``; None: nobody at the moment."""
        ...

    def moved(self) -> None:
        """A node has said that it no longer has what it was asked for."""
        ...

    def close(self) -> None: ...


def open_nodes(url: str, *, timeout_s: float, connections: int) -> Nodes:
    """Nothing is contacted yet. Raises InvalidInput (REDIS_URL)."""
    options = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(timeout_s, CONNECT_TIMEOUT_S),
        "protocol": 2,
    }
    urls = _SEPARATOR.split(url)
    try:
        kinds = {urlsplit(one).scheme.partition("+")[2] for one in urls}
        if kinds == {""}:
            return _Several({_where(one): _pool(one, options, connections, timeout_s) for one in urls})
        if len(urls) == 1 and kinds == {"sentinel"}:
            return _sentinel(url, options)
        if len(urls) == 1 and kinds == {"cluster"}:
            return _Cluster(url, options)
    except (ValueError, RedisClusterException) as error:
        raise InvalidInput(f"Redis URL {_where(url)!r}: {error}", reason="REDIS_URL") from error
    raise InvalidInput(
        f"Redis URL {_where(url)!r}: give redis:// addresses with commas between them, or one redis+sentinel:// or "
        "redis+cluster://",
        reason="REDIS_URL",
    )


def under_tls(url: str) -> bool:
    """Whether everything that the setting names is reached under TLS."""
    return all(urlsplit(one).scheme.startswith("rediss") for one in _SEPARATOR.split(url))


class _Several:
    """One server or several; each blob lies whole on the one that is its home."""

    by_key = False

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._nodes = {where: Node(where, pool) for where, pool in pools.items()}
        names = sorted(self._nodes)
        self._home = lru_cache(maxsize=1 << 16)(lambda digest: home(digest, names))

    def of(self, digest: str, key: str) -> Node | None:
        return self._nodes[self._home(digest)]

    def moved(self) -> None:
        """Only nodes of a Cluster say so."""

    def close(self) -> None:
        for node in self._nodes.values():
            node.pool.disconnect()


class _Cluster:
    """A Redis Cluster: pieces spread over its nodes by their keys."""

    by_key = True

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._hosts, self._kwargs = _hosts_and_options(url, _REDIS_PORT, options)
        if self._kwargs.pop("db", 0):
            raise ValueError("a Cluster has only database 0")
        self._lock = threading.Lock()
        self._cluster: RedisCluster | None = None

    def of(self, digest: str, key: str) -> Node | None:
        cluster = self._opened()
        found = cluster.nodes_manager.slots_cache.get(cluster.keyslot(key))
        if not found:
            return None
        pool = cluster.get_redis_connection(found[0]).connection_pool
        return Node(found[0].name, cast("Pool", pool))

    def moved(self) -> None:
        with self._lock:
            if self._cluster is not None:
                self._cluster.nodes_manager.initialize()

    def close(self) -> None:
        with self._lock:
            if self._cluster is not None:
                self._cluster.close()
                self._cluster = None

    def _opened(self) -> RedisCluster:
        with self._lock:
            if self._cluster is None:
                nodes = [ClusterNode(host, port) for host, port in self._hosts]
                # A slot that nobody has costs its pieces, not all of them.
                self._cluster = RedisCluster(startup_nodes=nodes, require_full_coverage=False, **self._kwargs)
            return self._cluster


def _pool(url: str, options: Mapping[str, Any], connections: int, timeout_s: float) -> Pool:
    pool = redis.BlockingConnectionPool.from_url(url, max_connections=connections, timeout=timeout_s, **options)
    return cast("Pool", pool)


def _sentinel(url: str, options: Mapping[str, Any]) -> Nodes:
    hosts, kwargs = _hosts_and_options(url, _SENTINEL_PORT, options)
    master = urlsplit(url).path.strip("/").partition("/")[0]
    if not master:
        raise ValueError("name the master, as in redis+sentinel://host:26379/mymaster")
    own = {name: kwargs.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in kwargs}
    shared = {name: value for name, value in kwargs.items() if name.startswith("ssl") or name in options}
    pool = SentinelConnectionPool(master, Sentinel(hosts, sentinel_kwargs={**shared, **own}), **kwargs)
    return _Several({_where(url): cast("Pool", pool)})


def _hosts_and_options(url: str, port: int, options: Mapping[str, Any]) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """Its hosts, and what redis-py makes of the rest of the URL. Raises ValueError."""
    parts = urlsplit(url)
    user, _, listed = parts.netloc.rpartition("@")
    hosts = []
    for one in listed.split(","):
        each = urlsplit(f"//{one}")
        if not each.hostname:
            raise ValueError("an address has no host")
        hosts.append((each.hostname, each.port or port))
    secure = parts.scheme.startswith("rediss")
    database = parts.path.strip("/").partition("/")[2] if parts.scheme.endswith("sentinel") else parts.path.strip("/")
    plain = f"{'rediss' if secure else 'redis'}://{user}{'@' if user else ''}host/{database}"
    query = urlencode(parse_qsl(parts.query))
    kwargs = {**parse_url(f"{plain}?{query}"), **options}
    for name in ("host", "connection_class"):
        kwargs.pop(name, None)
    return hosts, {**kwargs, **({"ssl": True} if secure else {})}


def _where(url: str) -> str:
    """The addresses of a URL without users and passwords."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or parts.path or url
