"""Ways to bring blobs into memory that is there already: what `data.py` compares."""

from __future__ import annotations

import http.client
import mmap
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import obstore
import psutil
import redis
from crc32c import crc32c
from obstore.store import S3Store
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe_dataplane.plan import BlobPlan
from premoe_dataplane.transports.base import Part, Transport
from support.blob_pack import DATA_OFFSET, BlobPack, write_blob_pack

from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import piece, piece_count
from premoe_runtime.storage import open_store

Rooms = Sequence[memoryview]
Read = Callable[[Sequence[int], Rooms], None]
"""Brings blobs, by their indices, into memory of their length each."""
One = Callable[[int, memoryview], None]


@dataclass(frozen=True, slots=True)
class Blobs:
    """A pack of random blobs of one size in a store on a disk, and each blob as a file in main memory by its digest."""

    num_bytes: int
    pack: BlobPack
    url: str
    layer_file: Path
    memory: Path

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def experts(self) -> list[ExpertId]:
        return list(self.pack.blobs)

    @property
    def digests(self) -> list[str]:
        return [self.pack.manifest.digest(expert) for expert in self.experts]

    @property
    def paths(self) -> list[Path]:
        return [self.memory / digest for digest in self.digests]

    @classmethod
    def make(cls, num_bytes: int, count: int, memory: Path, disk: Path) -> Blobs:
        store = open_store(f"file://{disk}")
        pack = write_blob_pack(store, layers=1, experts=count, blob_bytes=num_bytes, file_bytes=1 << 20, seed=num_bytes)
        blobs = cls(num_bytes, pack, store.url, disk / pack.layer_path(0), memory)
        for path, data in zip(blobs.paths, pack.blobs.values(), strict=True):
            path.write_bytes(data)
        return blobs


def slot(num_bytes: int) -> memoryview:
    """Memory of whole pages, all of them taken."""
    pages = mmap.mmap(-1, num_bytes)
    np.frombuffer(pages, np.uint8)[:] = 1
    return memoryview(pages)


@dataclass
class Way:
    """One way to read, what it is measured against, and the processes whose time it costs beside this one."""

    name: str
    read: Read
    reference: str = ""
    target: float | None = None
    servers: Sequence[int] = ()
    before: Callable[[], None] = field(default=lambda: None)
    """Runs before each job, and is not counted."""

    def cpu_s(self) -> float:
        own = os.times()
        others = (psutil.Process(pid).cpu_times() for pid in self.servers)
        return own.user + own.system + sum(one.user + one.system for one in others)


def one_by_one(read: One) -> Read:
    def read_all(indices: Sequence[int], rooms: Rooms) -> None:
        for index, room in zip(indices, rooms, strict=True):
            read(index, room)

    return read_all


# References


def memcpy(blobs: Blobs) -> Read:
    """From ordinary memory."""
    sources = [np.fromfile(path, np.uint8) for path in blobs.paths]

    def read(index: int, into: memoryview) -> None:
        np.frombuffer(into, np.uint8)[:] = sources[index]

    return one_by_one(read)


def raw_tcp(port: int) -> Read:
    """One connection; all blobs are asked for at once."""
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(indices: Sequence[int], rooms: Rooms) -> None:
        client.sendall(b"".join(b"%d\n" % index for index in indices))
        for room in rooms:
            done = 0
            while done < len(room):
                got = client.recv_into(room[done:], 0, socket.MSG_WAITALL)
                if not got:
                    raise EOFError("the server left")
                done += got

    return read


def direct(blobs: Blobs) -> Read:
    """The disk past the page cache."""

    def read(index: int, into: memoryview) -> None:
        descriptor = os.open(blobs.layer_file, os.O_RDONLY | os.O_DIRECT)
        try:
            if os.preadv(descriptor, [into], DATA_OFFSET + index * len(into)) != len(into):
                raise EOFError("short read")
        finally:
            os.close(descriptor)

    return one_by_one(read)


def from_pack(blobs: Blobs) -> Read:
    """The storage client's reads out of a pack in a folder."""
    store, path = open_store(blobs.url), blobs.pack.layer_path(0)

    def read(index: int, into: memoryview) -> None:
        store.read_into(path, DATA_OFFSET + index * len(into), [into])

    return one_by_one(read)


def out_of_page_cache(blobs: Blobs) -> Callable[[], None]:
    """Makes the next read of the pack's file one of the disk. Nobody may have it mapped."""

    def drop() -> None:
        with blobs.layer_file.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return drop


def http_whole(port: int, blobs: Blobs, folder: str = "") -> Read:
    """The standard library's client, straight into the memory: what the server can send."""
    client = http.client.HTTPConnection("127.0.0.1", port)
    client.connect()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(index: int, into: memoryview) -> None:
        client.request("GET", f"/{folder}{blobs.digests[index]}")
        response = client.getresponse()
        done = 0
        while done < len(into):
            got = response.readinto(into[done:])
            if not got:
                raise EOFError("short body")
            done += got
        response.read()

    return one_by_one(read)


# Stock parts


def redis_get(url: str) -> Read:
    """redis-py's GET of the whole value."""
    client = redis.Redis.from_url(url)

    def read(index: int, into: memoryview) -> None:
        value = client.get(f"plain:{index}")
        assert isinstance(value, bytes)
        into[:] = value

    return one_by_one(read)


def stock_grpc(port: int) -> Read:
    """Messages with bytes, as the generated code reads them; one stream for all."""
    stub = experts_pb2_grpc.ExpertStoreServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))

    def read(indices: Sequence[int], rooms: Rooms) -> None:
        for frame in stub.Fetch(pb.FetchRequest(experts=[pb.ExpertId(layer=0, expert=index) for index in indices])):
            rooms[frame.index][frame.offset : frame.offset + len(frame.data)] = frame.data

    return read


def obstore_whole(port: int, blobs: Blobs, bucket: str) -> Read:
    """Obstore's get_range of the whole object, copied."""
    store = S3Store(
        bucket,
        endpoint=f"http://127.0.0.1:{port}",
        region="us-east-1",
        skip_signature=True,
        client_options={"allow_http": True},
    )

    def read(index: int, into: memoryview) -> None:
        into[:] = memoryview(obstore.get_range(store, blobs.digests[index], start=0, length=blobs.num_bytes))

    return one_by_one(read)


# Ours


def ours(transport: Transport, plans: Sequence[BlobPlan], *, checked: bool) -> Read:
    """A transport of the data plane, whole blobs; ``checked``: every piece by its crc32c as it lands."""
    wanted = tuple(range(piece_count(plans[0].num_bytes)))

    def read(indices: Sequence[int], rooms: Rooms) -> None:
        landed = 0

        def note(part: Part, number: int) -> None:
            nonlocal landed
            landed += 1
            if checked:
                place = piece(number, part.blob.num_bytes)
                if crc32c(part.into[place.offset : place.end]) != part.blob.checks[number]:
                    raise CorruptData(f"piece {number} is wrong")

        found = [plans[index] for index in indices]
        parts = [Part(blob, blob.sources[0], room, wanted) for blob, room in zip(found, rooms, strict=True)]
        transport.read(parts, note, lambda: False)
        if landed != len(wanted) * len(parts):
            raise EOFError(f"{landed} of {len(wanted) * len(parts)} pieces came")

    return read
