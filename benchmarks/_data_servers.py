"""Servers that `data.py` measures against, a process each: raw TCP, today's frames, nginx as object storage."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import redis
from premoe.experts.v1 import experts_pb2 as pb
from support.servers import find_program, running

FRAME_BYTES = 1 << 20
START_S = 20.0

Serve = Callable[[Connection], None]


@contextmanager
def in_process(serve: Serve) -> Iterator[tuple[int, int]]:
    """Run ``serve``, which tells its port, in a process. Yields (port, pid)."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        if not ours.poll(START_S):
            raise RuntimeError("a server of the benchmark did not start")
        assert process.pid is not None
        yield ours.recv(), process.pid
    finally:
        process.terminate()
        process.join()


class RawTcp:
    """Sends the file that a line of digits names, out of memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)

    def __call__(self, told: Connection) -> None:
        blobs = [path.read_bytes() for path in self._files]
        listener = socket.create_server(("127.0.0.1", 0))
        told.send(listener.getsockname()[1])
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(client, blobs), daemon=True).start()

    def _serve(self, client: socket.socket, blobs: Sequence[bytes]) -> None:
        with client, client.makefile("rb") as lines:
            for line in lines:
                client.sendall(blobs[int(line)])


class StockGrpc:
    """An expert store wired from stock parts: GET of the whole value out of Redis, then messages with bytes."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url

    def __call__(self, told: Connection) -> None:
        client = redis.Redis.from_url(self._redis_url)

        def fetch(request: pb.FetchRequest, context: object) -> Iterator[pb.FetchResponse]:
            for index, expert in enumerate(request.experts):
                blob = client.get(f"plain:{expert.expert}")
                assert isinstance(blob, bytes)
                for offset in range(0, len(blob), FRAME_BYTES):
                    yield pb.FetchResponse(index=index, offset=offset, data=blob[offset : offset + FRAME_BYTES])

        handler = grpc.unary_stream_rpc_method_handler(
            fetch, pb.FetchRequest.FromString, pb.FetchResponse.SerializeToString
        )
        server = grpc.server(ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("premoe.experts.v1.ExpertStoreService", {"Fetch": handler})]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        told.send(port)
        server.wait_for_termination()


NGINX = """daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@contextmanager
def nginx(root: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """Nginx over the files below ``root``: unsigned GETs of object storage. Yields (port, pid)."""
    folder.mkdir()
    config = folder / "nginx.conf"
    who = "user root;\n" if os.getuid() == 0 else ""
    program = find_program("nginx")

    def command(port: int) -> list[str]:
        config.write_text(who + NGINX.format(folder=folder, port=port, root=root))
        return [program, "-c", str(config), "-p", str(folder)]

    with running(command, folder / "log") as (port, process):
        yield port, process.pid
