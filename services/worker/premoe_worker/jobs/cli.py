"""``premoe-job``: one Kubernetes Job's work, its exit code and its last words."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast, get_args

import click
from premoe_servicekit.logs import setup_logging
from premoe_servicekit.telemetry import setup_telemetry, tracer
from premoe_servicekit.termination import failure, write_last_words

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.errors import InvalidInput, PremoeError
from premoe_runtime.formats.pattern import Metric
from premoe_runtime.offline.calibration import Answers
from premoe_runtime.offline.patterns.build import BuildOptions
from premoe_runtime.offline.profile.scores import measured_for
from premoe_worker.jobs import work
from premoe_worker.jobs.measuring import Machine
from premoe_worker.jobs.tasks import chosen, read_tasks

PROGRAM = "premoe-job"
EXIT_UNEXPECTED = 1
INDEX_VARIABLE = "JOB_COMPLETION_INDEX"


class Stopped(BaseException):
    """SIGTERM or SIGINT came. Not an Exception, so that nothing takes it for a failure of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


store_argument = click.argument("store_url")
model_option = click.option("--model-id", required=True, help="The pack, as `premoe-job pack` names it.")
tasks_option = click.option(
    "--tasks", "tasks_file", required=True, type=click.Path(path_type=Path), help="JSON list of tasks."
)
metric_option = click.option("--metric", help="Score that ranks.  [default: impact, else peu]")
answers_option = click.option("--answers", type=click.Choice(get_args(Answers)), default="given", show_default=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Ensure a pack, profiles or a live pattern set in an object store, and do nothing where they exist.

    The last line of output, which is also the container's termination message, is a JSON object: what was ensured,
    or reason and message of the failure. Exit codes: 2 bad input, 3 not found, 4 conflict, 5 damaged data, 6 a server
    that does not answer, 7 no room.
    """


@command.command("pack")
@click.argument("source", metavar="SRC")
@click.option("--to", "store_url", required=True, metavar="URL", help="Object store that takes the pack.")
@click.option("--revision", default="", help="Commit of an hf:// source.")
@click.option("--expect", default="", metavar="MODEL_ID", help="Fail when the pack comes out with another id.")
def pack(source: str, store_url: str, revision: str, expect: str) -> work.Words:
    """Ensure the pack of the checkpoint SRC: a folder, file://, s3://bucket/prefix or hf://org/name.

    A run that was stopped or killed leaves its finished layers behind, and the next one goes on from there.
    """
    return work.pack(source, store_url, revision=revision, expect=expect)


@command.command("profile")
@store_argument
@model_option
@tasks_option
@answers_option
@metric_option
@click.option("--device", default="cpu", show_default=True, help="Torch device.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: torch's choice]")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", help="Arithmetic.")
@click.option("--memory", type=click.IntRange(min=1), help="Bytes it may take.  [default: what is free]")
@click.option("--spool", type=click.Path(path_type=Path), help="Folder for layer inputs.  [default: in the cache]")
def profile(
    store_url: str,
    model_id: str,
    tasks_file: Path,
    answers: str,
    metric: Metric | None,
    device: str,
    threads: int | None,
    dtype: str,
    memory: int | None,
    spool: Path | None,
) -> work.Words:
    """Ensure the profile of the task that JOB_COMPLETION_INDEX names, or without it of every task.

    A task that was stopped half-way goes on behind its last finished batch. A model that does not fit into memory is
    profiled layer by layer. It is measured for the usual scores, or for the metric where that is none of them.
    """
    tasks = chosen(read_tasks(tasks_file), completion_index())
    machine = Machine(device, threads, dtype, memory, spool)
    return work.profile(store_url, model_id, tasks, cast("Answers", answers), measured_for(metric), machine)


@command.command("patterns")
@store_argument
@model_option
@tasks_option
@answers_option
@metric_option
@click.option("--budget", "budgets", multiple=True, help="a/b at which to record the generalist, repeatable.")
@click.option("--on-unknown", type=click.Choice(get_args(OnUnknown)), default="generalist", show_default=True)
def patterns(
    store_url: str,
    model_id: str,
    tasks_file: Path,
    answers: str,
    metric: Metric | None,
    budgets: tuple[str, ...],
    on_unknown: str,
) -> work.Words:
    """Ensure that the pattern set of exactly these tasks is the live one. Their profiles must be there."""
    options = BuildOptions(
        metric=metric,
        budgets=tuple(Budget.parse(text) for text in budgets),
        on_unknown=cast("OnUnknown", on_unknown),
    )
    return work.patterns(store_url, model_id, read_tasks(tasks_file), cast("Answers", answers), options)


def completion_index() -> int | None:
    """The index of this pod in an Indexed Job; None outside one. Raises InvalidInput."""
    text = os.environ.get(INDEX_VARIABLE, "")
    if not text:
        return None
    if not text.isdecimal():
        raise InvalidInput(f"{INDEX_VARIABLE} is {text!r}, which is no index", reason="INDEX_INVALID")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point."""
    setup_logging(PROGRAM.removeprefix("premoe-"))
    listen()
    sys.exit(run(lambda: command.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)))


def run(job: Callable[[], Any]) -> int:
    """Do a Job's work and say how it ended; returns the exit code."""
    try:
        words = _traced(job)
    except Stopped as stopped:
        return _failed({"reason": "STOPPED", "message": "stopped by a signal; another run goes on"}, stopped.exit_code)
    except PremoeError as error:
        return _failed(failure(error), error.exit_code)
    except click.ClickException as error:
        return _failed({"reason": "USAGE", "message": error.format_message()}, InvalidInput.exit_code)
    except Exception as error:
        _failed(failure(error), EXIT_UNEXPECTED)
        raise
    if isinstance(words, dict):
        print(json.dumps(words), flush=True)
        write_last_words(words)
    return 0


def listen() -> None:
    """Let SIGTERM and SIGINT end the work as an exception, so that writers and locks are cleaned up."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _traced(job: Callable[[], Any]) -> Any:
    telemetry = setup_telemetry(PROGRAM)
    try:
        with tracer().start_as_current_span("job"):
            return job()
    finally:
        telemetry.shutdown()


def _failed(words: dict[str, str], exit_code: int) -> int:
    message = " ".join(words["message"].split())
    print(f"error: {message}", file=sys.stderr, flush=True)
    words = {**words, "message": message}
    print(json.dumps(words), flush=True)
    write_last_words(words)
    return exit_code


if __name__ == "__main__":
    main()
