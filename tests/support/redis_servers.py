"""Redis as several servers, behind Sentinels, as a Cluster, and under TLS with a user: real processes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from support.certificates import Authority, tls_folder
from support.servers import READY_SECONDS, find_program, free_port, redis_server, running

MASTER = "premoe"


@dataclass(frozen=True, slots=True)
class RedisSet:
    """What is named to a client, and the servers behind it: URLs for a client of the test's own, and processes."""

    url: str
    each: Sequence[str]
    processes: Sequence[subprocess.Popen[bytes]]

    def flush(self) -> None:
        for url in self.each:
            with redis.Redis.from_url(url) as client:
                client.flushall()


@contextmanager
def several(folder: Path, count: int = 3) -> Iterator[RedisSet]:
    with ExitStack() as stack:
        servers = []
        for number in range(count):
            (folder / str(number)).mkdir()
            servers.append(stack.enter_context(redis_server(folder / str(number))))
        urls = [server.url for server in servers]
        yield RedisSet(",".join(urls), urls, [server.process for server in servers])


@contextmanager
def with_sentinel(folder: Path) -> Iterator[RedisSet]:
    """A master, its replica and a Sentinel that makes the replica master within about two seconds."""
    for name in ("master", "replica", "sentinel"):
        (folder / name).mkdir()
    with ExitStack() as stack:
        master = stack.enter_context(redis_server(folder / "master"))
        replica = stack.enter_context(
            redis_server(
                folder / "replica", "--replicaof", "127.0.0.1", str(master.port), "--repl-diskless-sync-delay", "0"
            )
        )

        def command(port: int) -> list[str]:
            file = folder / "sentinel" / "sentinel.conf"
            file.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder / 'sentinel'}\n"
                f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 1\n"
                f"sentinel down-after-milliseconds {MASTER} 500\nsentinel failover-timeout {MASTER} 3000\n"
            )
            return [find_program("redis-server"), str(file), "--sentinel"]

        port, _ = stack.enter_context(running(command, folder / "sentinel.log"))
        _until(lambda: _linked(replica.url) and _knows_replica(port))
        url = f"redis+sentinel://127.0.0.1:{port}/{MASTER}/0"
        yield RedisSet(url, [master.url], [master.process])


@contextmanager
def cluster(folder: Path, count: int = 3) -> Iterator[RedisSet]:
    with ExitStack() as stack:
        servers = []
        for number in range(count):
            (folder / str(number)).mkdir()
            options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "2000"]
            servers.append(stack.enter_context(redis_server(folder / str(number), *options)))
        clients = [stack.enter_context(redis.Redis.from_url(server.url)) for server in servers]
        bus = [str(server.process.args).split("'--cluster-port', '")[1].split("'")[0] for server in servers]
        for number, client in enumerate(clients):
            first, last = number * 16384 // count, (number + 1) * 16384 // count - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port, bus[0])
        _until(lambda: all(b"cluster_state:ok" in _cluster_info(client) for client in clients))
        _until(lambda: all(len(client.execute_command("CLUSTER", "SHARDS")) == count for client in clients))
        url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in servers[:2])
        yield RedisSet(url, [server.url for server in servers], [server.process for server in servers])


@contextmanager
def with_tls(folder: Path) -> Iterator[RedisSet]:
    """Mutual TLS, and a user who may touch only blobs."""
    files = tls_folder(folder / "tls", Authority(), "redis").folder
    cert, key, ca = (str(files / name) for name in ("tls.crt", "tls.key", "ca.crt"))

    def command(port: int) -> list[str]:
        tls = ["--tls-port", str(port), "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", ca]
        plain = ["--port", "0", "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        users = ["--user", "premoe", "on", ">secret,word", "~premoe:blob:*", "+@read", "+@write", "+@connection"]
        return [find_program("redis-server"), *plain, *tls, *users]

    with running(command, folder / "redis.log") as (port, process):
        query = f"ssl_ca_certs={ca}&ssl_certfile={cert}&ssl_keyfile={key}"
        url = f"rediss://premoe:secret%2Cword@127.0.0.1:{port}/0?{query}"
        yield RedisSet(url, [f"rediss://127.0.0.1:{port}/0?{query}"], [process])


def _linked(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return bool(client.info("replication")["master_link_status"] == "up")


def _knows_replica(port: int) -> bool:
    with redis.Redis(port=port) as client:
        return bool(client.execute_command("SENTINEL", "REPLICAS", MASTER))


def _cluster_info(client: redis.Redis) -> bytes:
    answer = client.execute_command("CLUSTER", "INFO")
    return answer if isinstance(answer, bytes) else str(answer).replace("': '", ":").encode()


def _until(true: object) -> None:
    assert callable(true)
    until = time.monotonic() + READY_SECONDS
    while not true():
        if time.monotonic() > until:
            raise RuntimeError("the servers did not find each other")
        time.sleep(0.05)
