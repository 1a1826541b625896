"""A store as its commands leave it: packed, profiled, with patterns that are live."""

from pathlib import Path

from click.testing import CliRunner
from premoe_local.cli import command

from support.profiles import ALPHABETS, packed_model, write_examples


def live_store(folder: Path) -> str:
    """The store's URL, ``folder/store``: a tiny model with a live set of a task for each alphabet."""
    url = packed_model(folder)
    tasks = [f"{task}={write_examples(folder / f'{task}.jsonl', task)}" for task in ALPHABETS]
    named = [word for task in tasks for word in ("--task", task)]
    for arguments in (["profile", url, *named], ["patterns", "build", url, "--set-live"]):
        assert CliRunner().invoke(command, arguments).exit_code == 0
    return url
