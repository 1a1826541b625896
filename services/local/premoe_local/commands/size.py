"""`premoe size`: what a model takes at which budgets, which of them fit into a memory size, or why not."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, get_args

import click

from premoe_local.console import CommandError, human_bytes, json_option, note, parse_bytes, print_json, print_table
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.formats.allocation import Splits, slots_text
from premoe_runtime.formats.budget import DEFAULT_SPARE_SLOTS, Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.offline.patterns import library
from premoe_runtime.offline.sizing.bill import DEFAULT_ROWS, SizeReport, SizeRequest, size
from premoe_runtime.offline.sizing.devices import DEVICES, RESERVED_BYTES, device
from premoe_runtime.offline.sizing.numbers import DTYPES, WHAT_IF, name_of
from premoe_runtime.offline.sizing.shape import Shape, shape_of
from premoe_runtime.packs.hub import HUB
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.storage import open_store

CONFIG_FILE = "config.json"
LARGEST_CONFIG = 16 << 20


@click.command("size")
@click.argument("model")
@click.option("--memory", help="Accelerator memory, for example 24GiB.  [default: a table of accelerators]")
@click.option("--gpu", help="Memory of an accelerator, for example H200 or RTX-4090.")
@click.option("--budget", "budgets", multiple=True, help="a/b, repeatable.  [default: all, 3/4, 1/2, 1/4, 1/8]")
@click.option("--context", type=int, help="Tokens per sequence.  [default: the model's, at most 4096]")
@click.option("--batch", type=int, default=DEFAULT_ROWS, show_default=True, help="Sequences at once.")
@click.option("--spare", type=int, default=DEFAULT_SPARE_SLOTS, show_default=True, help="Spare slots a layer.")
@click.option(
    "--dtype",
    type=click.Choice([*DTYPES, *WHAT_IF]),
    help="What if the weights were stored so?  [default: as the pack or the config says]",
)
@click.option(
    "--engine-place",
    type=click.Choice(("thread", "process")),
    default="thread",
    show_default=True,
    help="As `premoe-worker --engine-place`: a child process takes memory of its own.",
)
@click.option(
    "--allocation",
    type=click.Choice(get_args(Allocation)),
    default="shared",
    show_default=True,
    help="Slots of the layers as the live pattern set shares them, if there is one, or equally many; equal bytes.",
)
@json_option
def command(
    model: str,
    memory: str | None,
    gpu: str | None,
    budgets: tuple[str, ...],
    context: int | None,
    batch: int,
    spare: int,
    dtype: str | None,
    engine_place: Literal["thread", "process"],
    allocation: Allocation,
    as_json: bool,
) -> None:
    """Say what budgets, slots and contexts take, and which fit into a memory size.

    MODEL is a config.json, a checkpoint's folder or hf://org/name, of which nothing but config.json is read; or a pack
    (…/models/<id>), or an object store with one pack. Counts the skeleton, slots × layers × expert, keys and values of
    all sequences, and the workspace of one step; nothing is loaded. `weights` are those of the kept experts and the
    skeleton as they are stored. What the process takes in main memory comes beside it, also where the device is a
    CPU. Without --memory and --gpu a second table says how many accelerators hold each budget, by memory alone. Exit
    code 7 when none of the budgets fits.
    """
    shape, splits = _shape(model, dtype, engine_place == "process", allocation)
    request = SizeRequest(
        memory=_memory(memory, gpu),
        budgets=tuple(Budget.parse(text) for text in budgets),
        context=context,
        rows=batch,
        spare=spare,
        splits=splits,
        engine=engine_place,
    )
    report = size(shape, request)
    if as_json:
        print_json(_document(report, shape))
    else:
        _print(report, shape)
    if report.memory is not None and report.largest is None:
        raise CommandError(f"no budget fits into {human_bytes(report.memory)}: {report.fits[-1].reason}", 7)


def _memory(memory: str | None, gpu: str | None) -> int | None:
    if memory is not None and gpu is not None:
        raise click.UsageError("--memory and --gpu both say how much there is; give one of them.")
    if gpu is not None:
        return device(gpu).num_bytes - RESERVED_BYTES
    return None if memory is None else parse_bytes(memory)


def _shape(model: str, dtype: str | None, probed: bool, allocation: Allocation) -> tuple[Shape, Splits | None]:
    """Byte counts of a pack or of a config, and how the pack's live pattern set shares its budgets."""
    config = _config(model)
    if config is not None:
        place = Path(model) / CONFIG_FILE
        return _configured(config, str(place) if place.is_file() else model, dtype), None
    reader = open_pack(model)
    manifest, config = reader.manifest(), reader.read_file(f"skeleton/{CONFIG_FILE}")
    shape = shape_of(manifest, config)
    family = FAMILIES.get(manifest.family)
    if dtype is not None or probed or manifest.numbers is not None or (family is not None and family.state is not None):
        own = name_of(manifest.dtype) if manifest.numbers is None else None
        told = replace(_configured(config, CONFIG_FILE, dtype or own), layer_experts=manifest.layer_experts)
        if dtype is None:
            told = replace(told, blob_bytes=shape.blob_bytes, stored_skeleton_bytes=shape.stored_skeleton_bytes)
        if own is not None and dtype is None:
            told = replace(told, skeleton_bytes=shape.skeleton_bytes)
        shape = told
    return shape, _splits(model, manifest.weights_id) if allocation == "shared" else None


def _configured(config: bytes, where: str, dtype: str | None) -> Shape:
    # Imported here: torch takes seconds, which only those wait for whose pack does not say it all.
    from premoe_runtime.offline.sizing.configured import shape_of_config

    return shape_of_config(config, where, dtype)


def _config(model: str) -> bytes | None:
    """A config that is there without a pack; None for whatever a pack may lie in."""
    path = Path(model)
    if path.is_file():
        if path.suffix != ".json" or path.stat().st_size > LARGEST_CONFIG:
            raise InvalidInput(f"{model} is no config.json; give that file, or its folder", reason="CONFIG_INVALID")
        return path.read_bytes()
    if model.startswith(HUB):
        return open_source(model).store.get(CONFIG_FILE)
    store = open_store(model)
    if store.exists(CONFIG_FILE):
        return store.get(CONFIG_FILE)
    if not path.exists() and "://" not in model:
        hub = f"; a model of a hub is hf://{model}" if model.count("/") == 1 and not model.startswith(".") else ""
        raise NotFound(f"{model}: no such file or folder{hub}", reason="MODEL_NOT_FOUND")
    return None


def _splits(model: str, weights_id: str) -> Splits | None:
    """Those of the live pattern set, if there is one."""
    try:
        return library.load_set(library.store_of(model), weights_id).splits
    except NotFound:
        return None


def _print(report: SizeReport, shape: Shape) -> None:
    bounded = report.memory is not None
    rows = [
        (
            fit.budget,
            slots_text(fit.layer_slots),
            human_bytes(fit.weights),
            human_bytes(fit.experts),
            human_bytes(fit.total),
            human_bytes(fit.host),
            ("yes" if fit.fits else "no") if bounded else "",
            (fit.max_context or "-") if bounded else "",
            fit.reason,
        )
        for fit in report.fits
    ]
    columns = (
        "budget",
        "slots a layer",
        "weights",
        "in slots",
        "in all",
        "main memory",
        "fits",
        "longest context",
        "why not",
    )
    room = f"{human_bytes(report.memory)} for " if report.memory is not None else ""
    print_table(f"{room}{report.rows} sequences of {report.context} tokens", columns, rows)
    if not bounded:
        _print_devices(report)
    state = f", state {human_bytes(report.state)}" if report.state else ""
    probed = f" and once more {human_bytes(report.probed)} for the prober" if report.probed else ""
    note(
        f"skeleton {human_bytes(report.skeleton)}{probed}, keys and values {human_bytes(report.kv)}{state}, "
        f"workspace {human_bytes(report.workspace)}; at most {report.max_slots} slots a layer fit; "
        f"all experts take {human_bytes(report.all_experts)} as stored"
    )
    if shape.numbers == shape.held:
        note(f"number format: {shape.numbers}")
    else:
        note(
            f"number format: {shape.numbers}, {human_bytes(shape.blob_bytes)} an expert as stored; the hf engine holds "
            f"it as {shape.held}, {human_bytes(shape.slot_blob_bytes)} a slot"
        )
    if shape.unserved:
        note(f"sized, not servable: {shape.unserved}")


def _print_devices(report: SizeReport) -> None:
    rows = [(one.name, f"{one.mib / 1024:.0f} GiB", *(one.needed(fit.total) for fit in report.fits)) for one in DEVICES]
    print_table("Accelerators", ("name", "memory", *(str(fit.budget) for fit in report.fits)), rows)
    note("accelerators are counted by memory alone: the hf engine runs on one; more need an engine that shares layers")


def _document(report: SizeReport, shape: Shape) -> dict[str, object]:
    largest = report.largest
    fits = [
        {
            **asdict(fit),
            "budget": str(fit.budget),
            "devices": {one.name: one.needed(fit.total) for one in DEVICES},
        }
        for fit in report.fits
    ]
    return {
        **asdict(report),
        "numbers": shape.numbers,
        "held": shape.held,
        "stored_skeleton": shape.stored_skeleton_bytes,
        "blob": shape.blob_bytes,
        "slot_blob": shape.slot_blob_bytes,
        "unserved": shape.unserved,
        "fits": fits,
        "largest": None if largest is None else str(largest.budget),
    }
