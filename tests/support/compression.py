"""A tiny packed model and jobs that compress it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from premoe_runtime.compress.method import Job, Method
from premoe_runtime.compress.share import Share
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.offline.calibration import Example, read_calibration
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store
from support.profiles import write_examples
from support.tiny import tiny_checkpoint


def tiny_pack(folder: Path, family: str = "qwen3_moe", **overrides: Any) -> PackWeights:
    """A packed random model of a family."""
    checkpoint = tiny_checkpoint(folder, family, **overrides)
    return PackWeights(open_pack(write_pack(open_source(str(checkpoint)), open_store(str(folder / "packs"))).url))


def tiny_data(folder: Path, tasks: Sequence[str] = ("capitals", "digits"), count: int = 6) -> dict[str, list[Example]]:
    """Prompts of random letters with answers, by task."""
    return {task: read_calibration(write_examples(folder / f"{task}.jsonl", task, count)) for task in tasks}


def job(method: Method, old: PackWeights, work: Path, share: float = 0.5, **rest: Any) -> Job:
    """``data``, ``seed`` and ``report`` as a job takes them; everything else is a setting of the method."""
    own = {name: rest.pop(name) for name in tuple(rest) if name not in ("data", "seed", "report")}
    return Job(old, rest.pop("data", {}), Share(share), method.settings(**own), work, threads=1, **rest)
