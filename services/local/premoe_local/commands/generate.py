"""`premoe generate`: one prompt over gRPC, the answer as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import click
from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.template_arguments import fault_of

from premoe_local.console import Number, Text, human_bytes, json_option, note, print_json, progress
from premoe_runtime.formats.errors import Unavailable

_UINT32 = 2**32 - 1
_UINT64 = 2**64 - 1
_POLICIES = {
    "generalist": patterns_pb2.ON_UNKNOWN_GENERALIST,
    "full": patterns_pb2.ON_UNKNOWN_FULL,
    "reject": patterns_pb2.ON_UNKNOWN_REJECT,
}
_DECISIONS = {
    patterns_pb2.DECISION_SPECIALIST: "specialist",
    patterns_pb2.DECISION_GENERALIST: "generalist",
    patterns_pb2.DECISION_FULL: "full",
    patterns_pb2.DECISION_REJECT: "reject",
}
_FINISH = {
    worker_pb2.FINISH_REASON_STOP: "stop",
    worker_pb2.FINISH_REASON_LENGTH: "length",
    worker_pb2.FINISH_REASON_CANCELLED: "cancelled",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    started: worker_pb2.Started
    finished: worker_pb2.Finished


class TemplateArgument(click.ParamType[tuple[str, Any]]):
    """A name and a JSON value, as the model's own chat template reads it."""

    name = "NAME=JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        name, equals, text = Text().convert(value, param, ctx).partition("=")
        if not (name and equals):
            self.fail(f"{value!r} is not NAME=JSON, such as enable_thinking=false", param, ctx)
        try:
            read = json.loads(text)
        except (ValueError, RecursionError):
            self.fail(f"{text!r} is no JSON; text has quotes of its own, such as '\"high\"'", param, ctx)
        if fault := fault_of({name: read}):
            self.fail(fault, param, ctx)
        return name, read


@click.command(short_help="Send one prompt to a worker and print the answer as it comes.")
@click.argument("prompt", type=Text())
@click.option("--address", help="A running worker, host:port (`premoe up` prints it).")
@click.option("--model", help="Or: a pack URL or store root; a mesh is started for this one prompt.")
@click.option("--budget", help="With --model: experts activated per token out of experts kept per layer, e.g. 4/16.")
@click.option("--pattern", default="", type=Text(), help="Task name, pattern id, generalist or full.")
@click.option("--system", default="", type=Text(), help="System message.")
@click.option("--raw", is_flag=True, help="Send the prompt as it is, without the chat template.")
@click.option(
    "--template-argument",
    "template_arguments",
    type=TemplateArgument(),
    multiple=True,
    help="What the model's own chat template reads, such as enable_thinking=false; repeatable.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, _UINT32),
    help="Most tokens of the answer.  [default: what the context holds]",
)
@click.option(
    "--temperature",
    type=Number(0, 1e6),
    default=0.0,
    show_default=True,
    help="0 is greedy; over HTTP the default is 1.",
)
@click.option("--top-p", type=Number(0, 1, min_open=True), default=1.0, show_default=True, help="Nucleus.")
@click.option("--stop", type=Text(), multiple=True, help="String that ends the answer, repeatable.")
@click.option("--seed", type=click.IntRange(0, _UINT64), help="Seed of the random numbers.")
@click.option("--active-experts", type=click.IntRange(1, _UINT32), help="Experts per token, instead of the budget's.")
@click.option("--deny", type=Text(), multiple=True, help="Task whose own experts are masked out, repeatable.")
@click.option(
    "--priority",
    type=click.IntRange(0, _UINT32),
    default=0,
    show_default=True,
    help="Larger ones step back behind requests with smaller ones.",
)
@click.option("--on-unknown", type=click.Choice(list(_POLICIES)), help="Policy when no stored task fits.")
@click.option("--timeout", type=Number(0, 1e6, min_open=True), default=300.0, show_default=True, help="Seconds.")
@json_option
def command(
    prompt: str,
    address: str | None,
    model: str | None,
    budget: str | None,
    pattern: str,
    system: str,
    raw: bool,
    template_arguments: tuple[tuple[str, Any], ...],
    max_tokens: int | None,
    temperature: float,
    top_p: float,
    stop: tuple[str, ...],
    seed: int | None,
    active_experts: int | None,
    deny: tuple[str, ...],
    priority: int,
    on_unknown: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Send PROMPT to a worker and print the answer as it comes.

    Without --pattern the worker recognises the task itself. What ran, and at what cost, goes to standard error.
    """
    if (address is None) == (model is None):
        raise click.UsageError("give either --address or --model")
    if model is not None and budget is None:
        raise click.UsageError("--model needs --budget")
    if raw and template_arguments:
        raise click.UsageError("--raw has no chat template; leave --template-argument out")
    request = worker_pb2.GenerateRequest(
        prompt=_prompt(prompt, system, dict(template_arguments), raw=raw),
        sampling=worker_pb2.Sampling(
            max_tokens=max_tokens or 0, temperature=temperature, top_p=top_p, stop=stop, seed=seed
        ),
        active_experts=active_experts,
        deny=deny,
        priority=priority,
        on_unknown=_POLICIES[on_unknown] if on_unknown else patterns_pb2.ON_UNKNOWN_UNSPECIFIED,
    )
    with ExitStack() as stack:
        if model is not None and budget is not None:
            pattern = _pattern_id(model, pattern)
            address = _start_mesh(model, budget, stack, full=pattern == "full" or on_unknown == "full")
        assert address is not None, "one of the two was given"
        if pattern:
            request.pattern.CopyFrom(_choice(pattern))
        shown: Callable[[str], None] = (lambda text: None) if as_json else (lambda text: click.echo(text, nl=False))
        answer = _read(_events(address, request, timeout), shown)
    if as_json:
        print_json(_document(answer))
    else:
        click.echo()
        note(f"{_sampled(request.sampling)} · {_summary(answer)}")


def _prompt(text: str, system: str, template_arguments: dict[str, Any], *, raw: bool) -> worker_pb2.Prompt:
    if raw:
        return worker_pb2.Prompt(text=text)
    turns = [worker_pb2.Message(role="system", content=system)] if system else []
    turns.append(worker_pb2.Message(role="user", content=text))
    arguments = json.dumps(template_arguments) if template_arguments else ""
    return worker_pb2.Prompt(chat=worker_pb2.Chat(messages=turns, template_arguments=arguments))


def _choice(pattern: str) -> worker_pb2.PatternChoice:
    reason = "named on the command line"
    if pattern == "full":
        return worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_FULL, reason=reason)
    if pattern == "generalist":
        return worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_GENERALIST, reason=reason)
    return worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_SPECIALIST, pattern_id=pattern, reason=reason)


def _pattern_id(model: str, pattern: str) -> str:
    """The id behind a task name or the start of an id. Raises NotFound."""
    if pattern in ("", "full", "generalist"):
        return pattern
    # Imported here: asking a running worker needs no client of object stores.
    from premoe_runtime.offline.patterns.library import find_pattern, store_of

    return find_pattern(store_of(model), pattern).pattern_id


def _start_mesh(model: str, budget: str, stack: ExitStack, *, full: bool) -> str:
    """A mesh for this one prompt; returns its worker's address."""
    from premoe_local.mesh import running
    from premoe_local.mesh_options import MeshOptions
    from premoe_runtime.packs.reader import open_pack

    slots = open_pack(model).manifest().num_experts if full else None
    options = MeshOptions(model=model, budget=budget, slots=slots, log_level="warning")
    with progress("starting") as bar:
        context = running(
            options, log=lambda name, line: note(f"{name}: {line}"), step=lambda text: bar.update(description=text)
        )
        return stack.enter_context(context).worker_addresses[0]


def _events(
    address: str, request: worker_pb2.GenerateRequest, timeout_s: float
) -> Iterator[worker_pb2.GenerateResponse]:
    with blocking_channel(address) as channel, rpc_errors(f"worker {address}"):
        call = worker_pb2_grpc.WorkerServiceStub(channel).Generate(request, timeout=timeout_s)
        try:
            yield from call
        finally:
            call.cancel()


def _read(events: Iterator[worker_pb2.GenerateResponse], shown: Callable[[str], None]) -> Answer:
    text: list[str] = []
    started = worker_pb2.Started()
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "started":
            started = event.started
        elif kind == "delta":
            text.append(event.delta.text)
            shown(event.delta.text)
        elif kind == "finished":
            return Answer("".join(text), started, event.finished)
    raise Unavailable("the worker ended the answer without its last event", reason="ANSWER_CUT")


def _sampled(sampling: worker_pb2.Sampling) -> str:
    if not sampling.temperature:
        return "greedy"
    seed = f", seed {sampling.seed}" if sampling.HasField("seed") else ""
    return f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}{seed}"


def _summary(answer: Answer) -> str:
    pattern, swap, finished = answer.started.pattern, answer.started.swap, answer.finished
    ran = f"{_DECISIONS.get(pattern.decision, '?')} {pattern.task}".strip()
    score = f", score {pattern.score:.3f}" if pattern.score else ""
    moved = f"{swap.blobs_loaded} blobs ({human_bytes(swap.bytes_loaded)}) in {swap.milliseconds:.1f} ms"
    rate = f", {tokens_per_s(finished):.0f} tokens/s" if finished.completion_tokens > 1 else ""
    tokens = f"{finished.prompt_tokens} + {finished.completion_tokens} tokens{rate}"
    return f"{ran}{score} · {moved} · {tokens} · retained mass {finished.retained_mass:.3f}"


def tokens_per_s(finished: worker_pb2.Finished) -> float:
    """Decode rate: tokens after the first one over the time they took; 0 where there is none."""
    return (finished.completion_tokens - 1) / finished.decode_ms * 1e3 if finished.decode_ms > 0 else 0.0


def _document(answer: Answer) -> dict[str, object]:
    pattern, swap, finished = answer.started.pattern, answer.started.swap, answer.finished
    return {
        "text": answer.text,
        "finish_reason": _FINISH.get(finished.reason, "unknown"),
        "pattern": pattern.pattern_id or _DECISIONS.get(pattern.decision),
        "task": pattern.task,
        "decision": _DECISIONS.get(pattern.decision),
        "score": pattern.score,
        "reason": pattern.reason,
        "retained_mass": finished.retained_mass,
        "numbers": finished.numbers or None,
        "swap": {
            "blobs_loaded": swap.blobs_loaded,
            "bytes_loaded": swap.bytes_loaded,
            "bytes_fetched": swap.bytes_fetched,
            "milliseconds": swap.milliseconds,
        },
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "first_token_ms": finished.first_token_ms,
        "decode_ms": finished.decode_ms,
        "tokens_per_s": tokens_per_s(finished),
    }
