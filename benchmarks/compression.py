"""The most memory that methods of compression take, beside one layer of the model that they are given.

    python benchmarks/compression.py [--method NAME …] [--layers 8 --experts 64] [--json FILE]

Writes the pack of a random Qwen3-MoE whose experts take 1.5 GiB in float32, 192 MiB a layer, and lets every method that
trains nothing make a pack of half the bytes, each in a process of its own. Target: what it takes beyond its imports is
at most one layer in float32 and 1 GiB.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import click
from _report import Report, json_option
from memory import qwen3_moe, write_pack
from throughput import write_tokenizer

from premoe_runtime.compress.compare.cells import Refused
from premoe_runtime.compress.compare.entrants import Entrant, entrants
from premoe_runtime.compress.compare.making import Order, make_apart
from premoe_runtime.compress.method import Job, Quiet
from premoe_runtime.compress.share import Share
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.offline.calibration import Example, Message
from premoe_runtime.packs.reader import open_pack

SLACK_BYTES = 1 << 30
TASKS, PROMPTS, WORDS = ("one", "two"), 8, 66


def examples(task: str) -> list[Example]:
    """Prompts of random words, with answers."""
    draw = random.Random(task)
    words = [[f"t{draw.randrange(1000)}" for _ in range(WORDS)] for _ in range(PROMPTS)]
    return [
        Example((Message("user", " ".join(one[2:])),), " ".join(one[:2]), line) for line, one in enumerate(words, 1)
    ]


def measure(entrant: Entrant, url: str, work: Path, report: Report, allowed: int) -> None:
    data = {task: examples(task) for task in TASKS}
    job = Job(PackWeights(open_pack(url)), data, Share(0.5), entrant.settings, work / "work", threads=1)
    made = make_apart(Order.of(entrant, job, str(work / "store")), Quiet())
    if isinstance(made, Refused):
        report.values[entrant.name] = {"refused": made.why}
        return
    report.values[entrant.name] = {
        "memory_bytes": made.memory,
        "seconds": round(made.seconds, 1),
        "within target": made.memory is not None and made.memory <= allowed,
    }


@click.command()
@click.option("--method", "methods", multiple=True, help="Repeatable.  [default: all that train nothing]")
@click.option("--layers", default=8, show_default=True)
@click.option("--experts", default=64, show_default=True)
@click.option("--hidden", default=1024, show_default=True)
@click.option("--width", default=256, show_default=True, help="Neurons of an expert.")
@json_option
def main(methods: tuple[str, ...], layers: int, experts: int, hidden: int, width: int, json_file: Path | None) -> None:
    """Peak memory of methods against one layer and 1 GiB."""
    layer = experts * 3 * hidden * width * 4
    report = Report("memory of methods of compression", {"layer_bytes": layer, "experts_bytes": layers * layer})
    with tempfile.TemporaryDirectory(prefix="premoe-compression-") as name:
        folder = Path(name) / "pack"
        write_tokenizer(folder.parent / "tokenizer")
        files = {path.name: path.read_bytes() for path in (folder.parent / "tokenizer").iterdir()}
        write_pack(folder, qwen3_moe(layers, experts, hidden, width), files)
        for entrant in entrants(methods)[0]:
            if methods or "training" not in entrant.method.needs:
                work = Path(name) / entrant.method.name
                (work / "work").mkdir(parents=True)
                measure(entrant, folder.as_uri(), work, report, layer + SLACK_BYTES)
    report.finish(json_file)


if __name__ == "__main__":
    main()
