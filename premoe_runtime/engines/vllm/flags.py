"""Flags of vLLM's own server for a model in slots, with the plug-in alone:

    python -m vllm.entrypoints.openai.api_server $FLAGS      # FLAGS: what this prints

It writes the skeleton's config and tokenizer where the server can read them. docs/vllm.md shows a whole run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from premoe_runtime.engines.hf.tokenizer import skeleton_folder
from premoe_runtime.engines.vllm.arguments import RANKS, arguments
from premoe_runtime.engines.vllm.plan import SlotPlan
from premoe_runtime.formats.errors import PremoeError
from premoe_runtime.packs.reader import open_pack


def flags(made: Mapping[str, Any]) -> list[str]:
    """Arguments of vLLM as its command line takes them."""
    found: list[str] = []
    for name, value in made.items():
        flag = name.replace("_", "-")
        match value:
            case True | False:
                found.append(f"--{flag}" if value else f"--no-{flag}")
            case dict():
                found += [f"--{flag}", json.dumps(value)]
            case _:
                found += [f"--{flag}", str(value)]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the flags in one line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m premoe_runtime.engines.vllm.flags", description=__doc__)
    parser.add_argument("pack", help="URL of the pack; every rank opens it")
    parser.add_argument("folder", type=Path, help="where config and tokenizer are written; must not exist")
    parser.add_argument("--slots", type=int, required=True, help="experts in memory per layer, on all ranks together")
    parser.add_argument("--ranks", type=int, default=1, help="devices (tensor_parallel_size)")
    parser.add_argument("--rows", type=int, default=64, help="patterns in force at a time")
    parser.add_argument("--executor", default="mp", help="vLLM's distributed_executor_backend for several ranks")
    asked = parser.parse_args(argv)
    if asked.rows < 1:
        parser.error("argument --rows: give at least 1")
    several = {RANKS: asked.ranks, "distributed_executor_backend": asked.executor} if asked.ranks != 1 else {}
    try:
        source = open_pack(asked.pack)
        plan = SlotPlan.of(source.manifest(), asked.slots, pack=asked.pack, rows=asked.rows)
        made = arguments(asked.folder, plan, several)
        with skeleton_folder(source) as folder:
            shutil.copytree(folder, asked.folder)
    except PremoeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except FileExistsError:
        print(f"{asked.folder} exists already; name a new folder", file=sys.stderr)
        return 2
    except (OSError, shutil.Error) as error:
        print(f"{asked.folder} cannot be written ({error}); name another folder", file=sys.stderr)
        return 2
    print(shlex.join(flags(made)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
