"""What an object store answers, and how quickly: what lies there is listed, and a pack in it is read a little."""

from __future__ import annotations

import http.client
import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from premoe_local.doctor.facts.clock import Clock
from premoe_runtime.formats.errors import PremoeError
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.place import pack_folder, packs_in
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.storage import READ_PART_BYTES, Store, open_store
from premoe_runtime.storage.aws_profile import endpoint_of, profile_options

_TIMES = 5


@dataclass(frozen=True, slots=True)
class Bucket:
    """``fault`` is why it cannot be read, of the whole or of the pack. Times are seconds."""

    url: str
    fault: str = ""
    packs: int = 0
    first_byte: float | None = None
    """What a read of one byte takes, by the median."""
    range_bytes: int = 0
    range_time: float | None = None
    """What a read of ``range_bytes`` takes, by the median."""
    blob_bytes: int | None = None
    clock: Clock | None = None
    is_remote: bool = True


def look(url: str, seconds: float) -> Bucket:
    """Look at the store; nothing is written. Raises InvalidInput for a bad URL or profile.

    ``seconds`` bounds the question about the clock, and how often a read is repeated; what the store's client takes to
    give up is its own.
    """
    store = open_store(url)
    is_remote = url.startswith("s3://")
    clock = _clock(seconds) if is_remote else None
    try:
        packs = packs_in(store)
        if not packs:
            return Bucket(store.url, clock=clock, is_remote=is_remote)
        manifest = PackReader(store, pack_folder(packs[0])).manifest()
        return _read(store, len(packs), manifest, clock, seconds)
    except PremoeError as error:
        return Bucket(store.url, fault=str(error), clock=clock, is_remote=is_remote)


def _read(store: Store, packs: int, manifest: Manifest, clock: Clock | None, seconds: float) -> Bucket:
    layer = manifest.layers[0]
    path = f"{pack_folder(manifest.model_id)}/{layer.file}"
    num_bytes = min(READ_PART_BYTES, layer.data_offset + layer.stride * len(layer.digests))
    room = memoryview(bytearray(num_bytes))
    return Bucket(
        store.url,
        packs=packs,
        first_byte=_median(lambda: store.get_range(path, 0, 1), seconds),
        range_bytes=num_bytes,
        range_time=_median(lambda: store.read_into(path, 0, [room]), seconds),
        blob_bytes=manifest.layout.blob_bytes,
        clock=clock,
        is_remote=store.url.startswith("s3://"),
    )


def _median(call: Callable[[], object], seconds: float) -> float:
    """Of a few calls, of fewer where they take longer than ``seconds`` together."""
    took: list[float] = []
    while len(took) < _TIMES and sum(took) < seconds:
        begun = time.perf_counter()
        call()
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def _clock(seconds: float) -> Clock | None:
    """By the Date that the endpoint puts in every answer, also in one that refuses us; it counts whole seconds."""
    options = profile_options(os.environ)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or options.get("region", "us-east-1")
    parts = urlsplit(endpoint_of(os.environ) or options.get("endpoint") or f"https://s3.{region}.amazonaws.com")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    with suppress(OSError, http.client.HTTPException, ValueError, TypeError):
        connection = kind(parts.hostname or "", parts.port, timeout=seconds)
        try:
            connection.connect()
            before = time.time()
            connection.request("HEAD", "/")
            told = connection.getresponse().getheader("Date")
            after = time.time()
        finally:
            connection.close()
        if told:
            return Clock.read(before, parsedate_to_datetime(told).timestamp(), after, resolution=1.0)
    return None
