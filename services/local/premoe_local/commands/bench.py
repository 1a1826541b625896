"""`premoe bench serve`: load on an OpenAI endpoint, and what its answers took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from premoe_local.console import Number, note, print_json, print_table, progress
from premoe_local.output_file import check_folder, write_file
from premoe_local.task_files import task_files
from premoe_runtime.formats.errors import Unavailable

if TYPE_CHECKING:
    from premoe_local.bench.load import Load
    from premoe_local.bench.report import Result
    from premoe_local.bench.schedule import Conversation
    from premoe_local.bench.summary import Promised

_PROMPTS = 200
"""Of each of the demo's tasks, where no files are given."""
_PROMISED: tuple[Promised, ...] = ("ttft", "tpot", "e2e")


class Promise(click.ParamType[tuple["Promised", float]]):
    """``ttft:200`` → ``("ttft", 200.0)``."""

    name = "NAME:MS"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Promised, float]:
        name, _, limit = value.partition(":")
        if name not in _PROMISED:
            self.fail(f"{value!r} names none of {', '.join(_PROMISED)}; write for example ttft:200", param, ctx)
        return name, Number(0, min_open=True).convert(limit, param, ctx)


@click.group("bench")
def command() -> None:
    """Load an OpenAI endpoint, ours or another's, and measure what its answers take."""


@command.command("serve")
@click.option("--base-url", default="http://127.0.0.1:8000", show_default=True, help="Endpoint, with or without /v1.")
@click.option("--model", help="Model to ask for.  [default: the only one served]")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME=FILE",
    help="Task and its prompts, as for `premoe profile`; repeatable, the likeliest first.  [default: the demo's tasks]",
)
@click.option(
    "--zipf",
    type=Number(0, 100),
    default=1.0,
    show_default=True,
    help="The k-th task comes with weight 1/k^ZIPF; 0: all alike.",
)
@click.option("--num-prompts", type=click.IntRange(1, 10**6), default=100, show_default=True, help="Requests to send.")
@click.option(
    "--num-warmups",
    type=click.IntRange(0, 10**6),
    default=1,
    show_default=True,
    help="Requests before these, one by one, that do not count.",
)
@click.option(
    "--max-concurrency",
    "clients",
    type=click.IntRange(1, 10**5),
    help="Closed loop: so many clients, each waits for its answer.  [default: 1]",
)
@click.option(
    "--request-rate",
    "rate",
    type=Number(0, 1e6, min_open=True),
    help="Open loop: so many requests a second on average, however slow the answers are.",
)
@click.option(
    "--burstiness",
    type=Number(0.001, 1e6),
    help="With --request-rate: 1 is Poisson, less comes in bursts, more is more even.  [default: 1]",
)
@click.option(
    "--goodput",
    "promises",
    type=Promise(),
    multiple=True,
    help="Count requests that keep this: ttft, tpot or e2e and milliseconds, e.g. ttft:200; repeatable.",
)
@click.option("--max-tokens", type=click.IntRange(1, 2**31 - 1), default=64, show_default=True, help="Of an answer.")
@click.option("--temperature", type=Number(0, 100), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--ignore-eos", is_flag=True, help="Send ignore_eos, so that every answer has --max-tokens.")
@click.option("--pattern", help="Send this pattern with every request, instead of recognition (PreMoE only).")
@click.option("--api-key", envvar="OPENAI_API_KEY", show_envvar=True, help="Key of the endpoint.")
@click.option("--timeout", type=Number(0, 1e6, min_open=True), default=600.0, show_default=True, help="Seconds.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of tasks, prompts and times."
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write figures and requests to this file; - prints them instead of the tables.",
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Also draw the latencies.")
@click.pass_context
def serve(
    ctx: click.Context,
    base_url: str,
    model: str | None,
    tasks: tuple[str, ...],
    zipf: float,
    num_prompts: int,
    num_warmups: int,
    clients: int | None,
    rate: float | None,
    burstiness: float | None,
    promises: tuple[tuple[Promised, float], ...],
    max_tokens: int,
    temperature: float,
    ignore_eos: bool,
    pattern: str | None,
    api_key: str | None,
    timeout: float,
    seed: int,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Send prompts to an OpenAI endpoint and report latencies, throughput, goodput and errors.

    In the shape of `vllm bench serve`: answers are streamed, and latencies count from when a request was due, so that
    an open loop shows what users of a slow server see. Ctrl-C ends the run and gives the figures so far.
    """
    if rate is not None and clients is not None:
        raise click.UsageError("give either --request-rate (open loop) or --max-concurrency (closed loop)")
    if burstiness is not None and rate is None:
        raise click.UsageError("--burstiness goes with --request-rate")
    picture = _check_files(json_file, plot)
    # Imported here: `premoe bench --help` should not wait for numpy and the HTTP client.
    from premoe_local.bench.client import Endpoint
    from premoe_local.bench.load import Load
    from premoe_local.bench.schedule import arrivals, plan_calls

    calls = plan_calls(_prompts(tasks), num_warmups + num_prompts, zipf=zipf, seed=seed)
    body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    body |= ({"ignore_eos": True} if ignore_eos else {}) | ({} if pattern is None else {"pattern": pattern})
    load = Load(
        endpoint=Endpoint(base_url, api_key, timeout),
        model=model,
        body=body,
        warmups=calls[:num_warmups],
        calls=calls[num_warmups:],
        pace=clients or 1 if rate is None else arrivals(num_prompts, rate=rate, burstiness=burstiness or 1, seed=seed),
    )
    asked = {name: value for name, value in ctx.params.items() if name not in ("api_key", "json_file", "plot")}
    result, whole = _run(load, asked, dict(promises))
    _tell(result, json_file, plot, picture)
    if not whole:
        note(f"stopped: {len(result.outcomes)} of {num_prompts} requests had ended")
        raise click.exceptions.Exit(130)
    if not result.summary.ok:
        code, errors = next(iter(result.summary.errors.items()))
        raise Unavailable(f"{base_url}: every request failed, the first with {code}: {errors.first}")


def _check_files(json_file: Path | None, plot: Path | None) -> str:
    """The picture's format. Raises NotFound or InvalidInput before anything is sent."""
    for path in (json_file, plot):
        if path is not None:
            check_folder(path)
    if plot is None:
        return ""
    from premoe_local.plots import picture_format

    return picture_format(plot)


def _prompts(tasks: Sequence[str]) -> dict[str, list[Conversation]]:
    """Every task's conversations, in the order given."""
    from premoe_local.tasks import STORED, examples
    from premoe_runtime.offline.calibration import Message, PassedOver, read_calibration

    if not tasks:
        return {task: [(Message("user", one.prompt),) for one in examples(task, "test", _PROMPTS)] for task in STORED}
    unused = PassedOver()
    found = {
        task: [one.messages for one in read_calibration(path, answers="none", passed_over=unused)]
        for task, path in task_files(tasks).items()
    }
    if unused.note:
        note(f"note: {unused.note}")
    return found


def _run(load: Load, asked: Mapping[str, Any], promises: Mapping[Promised, float]) -> tuple[Result, bool]:
    """Run it behind a bar; what was measured, and whether it got to its end."""
    from premoe_local.bench.load import measure
    from premoe_local.bench.report import Result
    from premoe_local.bench.summary import summarise

    with progress("warming up", total=len(load.calls)) as bar:
        measured = measure(load, warm=lambda: bar.update(description="sending"), ended=bar.advance)
    result = Result(
        load={**asked, "model": measured.model},
        promises_ms=promises,
        planned=len(load.calls),
        unfinished=measured.started - len(measured.outcomes),
        outcomes=measured.outcomes,
        summary=summarise(measured.outcomes, promises, measured.seconds),
    )
    return result, measured.whole


def _tell(result: Result, json_file: Path | None, plot: Path | None, picture: str) -> None:
    from premoe_local.bench import report

    summary = result.summary
    if str(json_file) == "-":
        print_json(report.document(result))
    else:
        print_table(f"{result.load['model']} at {result.load['base_url']}", ("", "in all"), report.total_rows(result))
        print_table("", report.LATENCY_COLUMNS, report.latency_rows(summary))
        if len(summary.tasks) > 1:
            print_table("", report.TASK_COLUMNS, report.task_rows(summary))
        if summary.errors:
            print_table("", report.ERROR_COLUMNS, report.error_rows(summary))
    if json_file is not None and str(json_file) != "-":
        text = json.dumps(report.document(result), indent=1, ensure_ascii=False, allow_nan=False)
        write_file(json_file, text.encode() + b"\n")
    if plot is not None:
        from premoe_local.bench.picture import run_picture

        write_file(plot, run_picture(result.outcomes, f"{result.load['model']}, {result.planned} requests", picture))
