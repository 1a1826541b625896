"""Writing an upcycled checkpoint: file by file, resumable, published at the very end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import blake3

from premoe_runtime.compress.upcycling.plan import File, Made, Planned
from premoe_runtime.compress.upcycling.weights import Content
from premoe_runtime.engines.hf.skeleton import bytes_of
from premoe_runtime.formats.errors import Exhausted
from premoe_runtime.offline.export.destination import Destination
from premoe_runtime.offline.export.plan import INDEX_FILE, file_bytes, header, index
from premoe_runtime.packs.progress import Progress, Silent
from premoe_runtime.packs.source import COMPRESSION_FILE, Source
from premoe_runtime.packs.writer import CHUNK_BYTES, SPARE_BYTES
from premoe_runtime.residency.blob_fields import torch_dtype


@dataclass(frozen=True, slots=True)
class Upcycled:
    """What a run wrote. ``resumed_files`` were found finished from an earlier run."""

    url: str
    num_bytes: int
    resumed_files: int


def write(
    source: Source,
    planned: Planned,
    content: Content,
    to: str,
    *,
    training: dict[str, object] | None = None,
    progress: Progress | None = None,
) -> Upcycled:
    """Write the checkpoint to ``to``, a folder or an object store's that is empty or not there.

    ``training``: what ``content`` depends on besides source and plan. Memory: one tensor of a dense MLP, and the
    store's buffers. Raises what ``Destination`` raises, and Exhausted.
    """
    progress, destination = progress or Silent(), Destination.at(to)
    small = {path: source.store.get(path) for path in source.skeleton_files if path != "config.json"}
    small |= {
        "config.json": planned.config,
        COMPRESSION_FILE: _provenance(source, planned, training),
        INDEX_FILE: json.dumps(index(planned.files), indent=2).encode() + b"\n",
    }
    key = blake3.blake3(b"\0".join([source.key.encode(), *(small[path] for path in sorted(small))])).hexdigest()
    destination.check_free(key)
    total = sum(map(file_bytes, planned.files)) + sum(map(len, small.values()))
    _check_room(destination, total)
    progress.total(sum(map(file_bytes, planned.files)))
    resumed = 0
    with destination.staged(key):
        for file in planned.files:
            progress.stage(file.path)
            path, store = destination.staging(file.path), destination.store
            if store.exists(path) and store.head(path).size == file_bytes(file):
                resumed += 1
                progress.advance(file_bytes(file))
                continue
            with store.writer(path) as out:
                for chunk in _chunks(source, file, content):
                    out.write(chunk)
                    progress.advance(len(chunk))
        for path, data in small.items():
            destination.store.put(destination.staging(path), data)
        destination.publish(key, last="config.json")
    return Upcycled(destination.url, total, resumed)


def _chunks(source: Source, file: File, content: Content) -> Iterator[bytes | memoryview]:
    yield header(file)
    for made in file.tensors:
        found = content(made)
        if found is None:
            yield from _copied(source, made)
        else:
            yield bytes_of(found.to(torch_dtype(made.stored.dtype)).contiguous())


def _copied(source: Source, made: Made) -> Iterator[bytes]:
    tensor = made.source
    assert tensor is not None
    for start in range(0, tensor.num_bytes, CHUNK_BYTES):
        yield source.store.get_range(tensor.file, tensor.offset + start, min(CHUNK_BYTES, tensor.num_bytes - start))


def _provenance(source: Source, planned: Planned, training: dict[str, object] | None) -> bytes:
    facts = {
        "tool": f"premoe {version('premoe')}",
        "method": "upcycle",
        "source": "arXiv 2212.05055, 2510.01185",
        "origin": source.origin,
        "revision": source.revision,
        "settings": dataclasses.asdict(planned.what),
        "training": training,
    }
    return json.dumps(facts, indent=2, ensure_ascii=False).encode() + b"\n"


def _check_room(destination: Destination, total: int) -> None:
    free, needed = destination.store.free_bytes(), total + SPARE_BYTES - destination.staged_bytes()
    if free is not None and needed > free:
        raise Exhausted(
            f"no space for the checkpoint in {destination.url}: {needed} bytes needed, {free} free; free some room and "
            "run again",
            reason="DISK_FULL",
        )
