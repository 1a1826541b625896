"""`premoe compress compare`: methods beside each other at equal bytes. Part of `premoe compress`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from premoe_local.console import interrupt_on_sigterm, json_option, note, print_json, print_table, progress
from premoe_local.full_model import memory_options, model_to_measure
from premoe_local.output_file import check_folder, write_file
from premoe_local.task_files import task_files
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.calibration import PassedOver, read_calibration
from premoe_runtime.offline.evaluation.data import DOCUMENTS, PROMPTS, TaskData, drawn
from premoe_runtime.packs.reader import PackReader

if TYPE_CHECKING:
    from premoe_runtime.compress.compare.run import Terms
    from premoe_runtime.engines.hf.model import SlotModel

BUDGETS = "50%,25%,12.5%"
SEEDS = 3
_DTYPES = ("auto", "float32", "bfloat16")


@click.command("compare")
@click.argument("pack")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME[:SETTING=VALUE,…]",
    help="Repeatable; random and select always take part.  [default: every method]",
)
@click.option("--budgets", default=BUDGETS, show_default=True, help="Shares of the experts' bytes, comma-separated.")
@click.option("--data", multiple=True, required=True, metavar="TASK=FILE", help="Examples with answers, repeatable.")
@click.option("--test", multiple=True, metavar="TASK=FILE", help="What is asked.  [default: a third of --data at most]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the report.")
@click.option("--seeds", type=click.IntRange(1, 100), default=SEEDS, show_default=True, help="Texts of a task.")
@click.option("--documents", type=click.IntRange(min=20), default=DOCUMENTS, show_default=True, help="Prompts of each.")
@click.option("--prompts", type=click.IntRange(min=1), default=PROMPTS, show_default=True, help="Asked of a task.")
@click.option("--retrieval/--no-retrieval", default=True, show_default=True, help="Put patterns beside the methods.")
@click.option("--keep", is_flag=True, help="Keep the packs in OUT/packs.  [default: each goes once it is measured]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--device", default="cpu", show_default=True, help="Torch device, for example cuda.")
@click.option("--dtype", type=click.Choice(_DTYPES), default="auto", show_default=True, help="Arithmetic of the tests.")
@memory_options
@json_option
def compare(
    pack: str,
    methods: tuple[str, ...],
    budgets: str,
    data: tuple[str, ...],
    test: tuple[str, ...],
    out: Path,
    seeds: int,
    documents: int,
    prompts: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare methods at equal bytes: accuracy, perplexity, KL to the full model, seconds, memory.

    PACK is a pack, a store with one, or a checkpoint (a folder, hf://org/name). Every method is calibrated on every
    seed's text, and its pack asked the same prompts; differences to random and to select are paired. Beside them:
    our own retrieval, the specialists of patterns built on the same text, served in slots of the same bytes. A method
    that cannot give a budget says why, and the others go on. A stopped run goes on where it ended when the same
    command is given. OUT gets compression.md, compression.json and a picture.
    """
    interrupt_on_sigterm()
    unused = PassedOver()
    examples = read_data(data, test, seeds=seeds, documents=documents, prompts=prompts, unused=unused)
    document = measured(pack, methods, budgets.split(","), examples, out, unused=unused, **options)
    write(document, out)
    if as_json:
        print_json(document)
        return
    _print(document)
    note(f"{out / 'compression.md'}, compression.json, {', '.join(one.name for one in sorted(out.glob('*.png')))}")


def read_data(
    data: Sequence[str], test: Sequence[str], *, seeds: int, documents: int, prompts: int, unused: PassedOver
) -> dict[str, TaskData]:
    """Every task's test and calibration. Raises what ``task_files``, ``read_calibration`` and ``drawn`` raise."""
    texts, asked = task_files(data, "--data"), task_files(test, "--test") if test else {}
    if asked.keys() - texts.keys():
        raise InvalidInput(
            f"--test names {min(asked.keys() - texts.keys())!r}, which --data does not", reason="TASK_UNKNOWN"
        )
    found = {}
    for task, path in texts.items():
        text = read_calibration(path, passed_over=unused)
        tested = read_calibration(asked[task], passed_over=unused) if task in asked else []
        first, second = (tested, text) if tested else (text, [])
        found[task] = drawn(task, first, second, seeds=seeds, documents=documents, prompts=prompts)
    return found


def measured(
    pack: str,
    methods: Sequence[str],
    budgets: Sequence[str],
    data: Mapping[str, TaskData],
    out: Path,
    *,
    unused: PassedOver,
    retrieval: bool = True,
    keep: bool = False,
    threads: int | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    memory: int | None = None,
    spool: Path | None = None,
    apart: bool = True,
) -> dict[str, Any]:
    """The figures; ``out``/state holds what a stopped run had measured. ``apart``: packs are made in processes of their
    own, whose memory is measured.
    """
    from premoe_local.evaluation.model import describe, opened
    from premoe_runtime.compress.compare.entrants import entrants
    from premoe_runtime.compress.compare.figures import figures
    from premoe_runtime.compress.compare.making import make_apart, make_here
    from premoe_runtime.compress.compare.run import Terms
    from premoe_runtime.compress.share import Share
    from premoe_runtime.offline.profile.measure import load_blocks

    taken, left_out = entrants(methods)
    shares = tuple(dict.fromkeys(map(Share.parse, filter(None, map(str.strip, budgets)))))
    if not shares:
        raise InvalidInput("--budgets names none; name at least one share, such as 25%", reason="COMPARISON_EMPTY")
    described = describe(pack)
    check_folder(out)
    state = out / "state"
    state.mkdir(parents=True, exist_ok=True)
    reader = opened(pack, state)
    blob = sum(field.num_bytes for field in reader.manifest().layout.fields)
    settings: dict[str, Any] = {"threads": threads, "device": device, "dtype": dtype}

    def load(pack: PackReader) -> SlotModel:
        # Once is enough to say how: the full model is the largest, and comes first.
        return model_to_measure(pack, memory=memory, purpose="evaluated", quiet=pack is not reader, **settings)

    terms = Terms(
        entrants=taken,
        left_out=left_out,
        shares=shares,
        load=load,
        head=partial(load_blocks, **settings),
        retrieval=retrieval,
        device=device,
        threads=threads,
        spool=spool,
        keep=out / "packs" if keep else None,
        make=make_apart if apart else make_here,
        probe_bytes=described.probe * blob,
    )
    return figures(_run(reader, data, terms, state, unused))


def _run(
    reader: PackReader, data: Mapping[str, TaskData], terms: Terms, state: Path, unused: Callable[[str], None]
) -> Any:
    from premoe_runtime.compress.compare.run import compare as run

    told: dict[str, None] = {}

    def say(text: str) -> None:
        told[text] = None
        unused(text)

    try:
        with progress("comparing", total=1.0, counts=False) as bar:
            found = run(
                reader,
                data,
                terms,
                state=state,
                stage=lambda what, share: bar.update(description=what, completed=share),
                say=say,
            )
    except KeyboardInterrupt:
        note(f"stopped; what was measured lies in {state}, and the same command goes on from there")
        raise
    for text in list(told)[:10]:
        note(f"note: {text}")
    return found


def write(document: Mapping[str, Any], out: Path) -> None:
    """Report, figures and picture."""
    from premoe_local.compress.compare_picture import pictures
    from premoe_local.compress.compare_report import report

    made = pictures(document)
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_file(out / "compression.json", text.encode() + b"\n")
    for name, image in made.items():
        write_file(out / name, image)
    write_file(out / "compression.md", report(document, list(made)).encode())


def _print(document: Mapping[str, Any]) -> None:
    from premoe_local.compress.compare_report import COLUMNS, left_out, rows

    for one in document["budgets"]:
        title = f"{one['percent']:g} % of the experts' bytes"
        print_table(title, COLUMNS, rows(one))
    for line in left_out(document):
        click.echo(line)
