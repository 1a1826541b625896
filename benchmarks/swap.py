"""A swap of half the slots, host tier to slots, against one memcpy of the same bytes in the same process.

    python benchmarks/swap.py [--device cuda] [--layers 16 --slots 32 --blob-mib 3] [--json FILE]

Blobs are random and their digests are checked before the clock starts: the host tier holds checked blobs only. On CUDA
the host tier is page-locked and the memcpy is one asynchronous copy of as many page-locked bytes.

Two baselines on the CPU: ``memcpy`` is one call of the C library's memcpy over all bytes, ``torch_copy`` one
``Tensor.copy_``. glibc writes past the cache only from a good part of the shared cache on, so one huge call may be
twice as fast as the same bytes in blobs of a few MiB; GLIBC_TUNABLES=glibc.cpu.x86_non_temporal_threshold=131072 in
the environment (it is read at process start) gives blobs the same stores.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import blake3
import click
import torch
from _report import Report, interleaved, json_option

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import (
    BlobField,
    BlobLayout,
    ExpertLayer,
    Manifest,
    Origin,
    PackFile,
    RouterSpec,
)
from premoe_runtime.residency.copier import BlobCopy, Copier, Copy
from premoe_runtime.residency.fetch import Fetcher
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.host_tier import HostTier
from premoe_runtime.residency.ledger import Ledger
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.slot_store import SlotStore
from premoe_runtime.residency.swap import bring


class RandomBlobs:
    """An ``ExpertSource`` of random blobs: half again as many experts as slots, so that two sets can alternate."""

    def __init__(self, layers: int, experts: int, blob_bytes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.blobs = torch.randint(0, 256, (layers, experts, blob_bytes), dtype=torch.uint8, generator=generator)
        half = blob_bytes // 4
        fields = (
            BlobField(name="gate_up", dtype="BF16", shape=(1, half), offset=0),
            BlobField(name="down", dtype="BF16", shape=(1, half), offset=2 * half),
        )
        digests = [[blake3.blake3(blob.numpy().data).hexdigest() for blob in layer] for layer in self.blobs]
        self._manifest = Manifest(
            model_id="",
            weights_id="0" * 64,
            family="random",
            router=RouterSpec(score="softmax", renormalise=True),
            top_k=1,
            num_layers=layers,
            num_experts=experts,
            hidden_size=half,
            dtype="BF16",
            layout=BlobLayout(fields=fields, blob_bytes=blob_bytes),
            layers=tuple(
                ExpertLayer(block=i, file="experts", data_offset=0, stride=blob_bytes, digests=tuple(d))
                for i, d in enumerate(digests)
            ),
            skeleton=(),
            checks=PackFile(path="checks", num_bytes=0, digest="0" * 64),
            origin=Origin(url="random"),
        )

    def manifest(self) -> Manifest:
        return self._manifest

    def read_file(self, path: str) -> bytes:
        raise NotImplementedError(path)

    def fetch(
        self,
        experts: Sequence[ExpertId],
        into: Callable[[ExpertId], memoryview],
        done: Callable[[ExpertId, bool], None],
        cancelled: Callable[[], bool] = lambda: False,
        urgent: Callable[[], bool] = lambda: True,
    ) -> None:
        for expert in experts:
            into(expert)[:] = self.blobs[expert.layer, expert.expert].numpy().data
            done(expert, False)


def chosen(layers: int, experts: range) -> frozenset[ExpertId]:
    return frozenset(ExpertId(layer, expert) for layer in range(layers) for expert in experts)


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--layers", default=16, show_default=True)
@click.option("--slots", default=32, show_default=True)
@click.option("--blob-mib", default=3.0, show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--threads", default=None, type=int, help="Torch threads (default: torch's own).")
@click.option("--copy-threads", default=2, show_default=True, help="Threads of a swap while nothing decodes.")
@json_option
def main(
    device: str,
    layers: int,
    slots: int,
    blob_mib: float,
    rounds: int,
    threads: int | None,
    copy_threads: int,
    json_file: Path | None,
) -> None:
    """Interleaved medians of one swap of half the slots and of one memcpy."""
    if threads:
        torch.set_num_threads(threads)
    blob_bytes = int(blob_mib * 2**20) // 4096 * 4096
    half = slots // 2
    experts = slots + half
    source = RandomBlobs(layers, experts, blob_bytes)
    store = SlotStore(SlotShape.of(source.manifest(), slots=slots), device)
    arena = HostArena(blob_bytes, layers * experts * blob_bytes)
    if device != "cpu":
        arena.lock_pages()
    host, copier = HostTier(arena), Copier(store, arena)
    places = {expert: host.reserve(expert) for expert in sorted(chosen(layers, range(experts)))}
    Fetcher(source, store.shape, arena).fetch(places, host.commit)
    kept = chosen(layers, range(half))
    sides = [kept | chosen(layers, range(half, slots)), kept | chosen(layers, range(slots, experts))]
    bring(store, source, sides[0])
    ledger = Ledger(store.slots, store.shape.manifest.layer_experts, store.slot_table())
    num_bytes = layers * half * blob_bytes
    pinned = device != "cpu"
    origin = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, pin_memory=pinned)
    target = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    turn = 0

    def settle() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    def swap() -> float:
        nonlocal turn
        turn += 1
        settle()
        started = time.perf_counter()
        loads = ledger.plan(sides[turn % 2])
        retired = store.retire(ledger.retire(loads))
        blobs = [BlobCopy(x.expert, host.place(x.expert), x.slot, host.digest(x.expert)) for x in loads]
        copied = copier.run(Copy(tuple(blobs), threads=copy_threads), after=retired)
        store.publish(ledger.settle(loads, copied.written, copied.torn))
        settle()
        elapsed = time.perf_counter() - started
        assert len(copied.written) * blob_bytes == num_bytes
        return elapsed

    def memcpy() -> float:
        started = time.perf_counter()
        ctypes.memmove(target.data_ptr(), origin.data_ptr(), num_bytes)
        return time.perf_counter() - started

    def torch_copy() -> float:
        settle()
        started = time.perf_counter()
        target.copy_(origin, non_blocking=True)
        settle()
        return time.perf_counter() - started

    variants = {"swap": swap, "torch_copy": torch_copy} | ({"memcpy": memcpy} if device == "cpu" else {})
    interleaved(variants, 2)
    samples = interleaved(variants, rounds)
    store.check_integrity()
    report = Report(
        "swap of half the slots",
        {
            "device": device if device == "cpu" else torch.cuda.get_device_name(),
            "layers": layers,
            "slots": slots,
            "blob_bytes": blob_bytes,
            "moved_bytes": num_bytes,
            "blobs": layers * half,
            "torch_threads": torch.get_num_threads(),
            "copy_threads": copy_threads,
        },
    )
    medians = {name: report.samples(name, seconds, num_bytes=num_bytes) for name, seconds in samples.items()}
    for name in variants.keys() - {"swap"}:
        report.values[f"swap rate over {name}"] = medians[name] / medians["swap"]
        report.values[f"swap rate over {name}, best"] = min(samples[name]) / min(samples["swap"])
    report.finish(json_file)


if __name__ == "__main__":
    main()
