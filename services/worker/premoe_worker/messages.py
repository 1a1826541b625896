"""Protobuf messages to domain values and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from premoe.worker.v1 import worker_pb2
from premoe_servicekit.abilities import ABILITIES

from premoe_runtime.engines.base import FinishReason
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.numbers.registry import told
from premoe_runtime.serving.reports import Residency, SwapReport
from premoe_worker.adapters.retrieval import DECISIONS, POLICIES
from premoe_worker.domain import (
    AnswerFormat,
    Ask,
    Called,
    Delta,
    Event,
    Finished,
    PatternChoice,
    PlaceLogprobs,
    Prompt,
    Started,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolChoice,
    Turn,
)
from premoe_worker.limits import Limits
from premoe_worker.parameters import parameters_of
from premoe_worker.residency import Preload

_DECISION_NUMBERS = {name: number for number, name in DECISIONS.items()}
_POLICY_NAMES = {number: name for name, number in POLICIES.items()}
_FINISH: dict[FinishReason | Literal["tool_calls"], worker_pb2.FinishReason.ValueType] = {
    "stop": worker_pb2.FINISH_REASON_STOP,
    "length": worker_pb2.FINISH_REASON_LENGTH,
    "cancelled": worker_pb2.FINISH_REASON_CANCELLED,
    "tool_calls": worker_pb2.FINISH_REASON_TOOL_CALLS,
}


def asking(prompt: worker_pb2.Prompt) -> Ask:
    """What is asked with a prompt and nothing else. Raises InvalidInput when nothing, or only emptiness, was sent."""
    chat = prompt.chat
    tools = tuple(Tool(tool.name, tool.description, tool.parameters, tool.strict) for tool in chat.tools)
    return Ask(_prompt(prompt), tools=tools, template_arguments=chat.template_arguments)


def _prompt(message: worker_pb2.Prompt) -> Prompt:
    kind = message.WhichOneof("kind")
    value: Prompt = ""
    if kind == "text":
        value = message.text
    elif kind == "token_ids":
        value = tuple(message.token_ids.ids)
    elif kind == "chat":
        value = tuple(_turn(turn) for turn in message.chat.messages)
    if not value:
        raise InvalidInput("the prompt is empty; send text, token ids or messages", reason="PROMPT_EMPTY")
    return value


def _turn(turn: worker_pb2.Message) -> Turn:
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in turn.tool_calls)
    return Turn(turn.role, turn.content, calls, turn.tool_call_id)


def ask(request: worker_pb2.GenerateRequest) -> Ask:
    """Raises InvalidInput for an empty prompt and for numbers that stand for nothing."""
    if request.on_unknown and request.on_unknown not in _POLICY_NAMES:
        raise InvalidInput(f"on_unknown {request.on_unknown} is no policy", reason="POLICY_INVALID")
    return replace(
        asking(request.prompt),
        sampling=_sampling(request.sampling),
        choice=_choice(request.pattern) if request.HasField("pattern") else None,
        active_experts=request.active_experts if request.HasField("active_experts") else None,
        deny=tuple(request.deny),
        on_unknown=_POLICY_NAMES.get(request.on_unknown),
        model=request.model,
        format=_format(request.format) if request.HasField("format") else None,
        tool_choice=ToolChoice(request.tool_choice.required, request.tool_choice.name, request.tool_choice.single),
        priority=request.priority,
        cache_salt=request.cache_salt,
    )


def response(event: Event) -> worker_pb2.GenerateResponse:
    if isinstance(event, Started):
        started = worker_pb2.Started(
            pattern=_choice_message(event.choice),
            prompt_tokens=event.prompt_tokens,
            swap=swap(event.swap),
            generation=event.swap.generation,
        )
        return worker_pb2.GenerateResponse(started=started)
    if isinstance(event, Delta):
        delta = worker_pb2.Delta(
            text=event.text,
            token_ids=event.token_ids,
            logprobs=map(_place, event.logprobs),
            prompt_logprobs=map(_place, event.prompt_logprobs),
        )
        return worker_pb2.GenerateResponse(delta=delta)
    if isinstance(event, Called):
        call = worker_pb2.ToolCall(id=event.call.id, name=event.call.name, arguments=event.call.arguments)
        return worker_pb2.GenerateResponse(tool_call=call)
    return worker_pb2.GenerateResponse(finished=_finished(event))


def swap(report: SwapReport) -> worker_pb2.Swap:
    return worker_pb2.Swap(
        blobs_loaded=report.blobs,
        bytes_loaded=report.bytes,
        blobs_evicted=report.evicted,
        bytes_fetched=report.bytes_fetched,
        milliseconds=report.milliseconds,
    )


def residency(
    snapshot: Residency,
    manifest: Manifest,
    limits: Limits,
    preload: Preload,
    *,
    name: str,
    context_length: int,
    split_problem: str,
    recommended: SamplingParams,
    deny: Sequence[str],
) -> worker_pb2.GetResidencyResponse:
    parameters = parameters_of(manifest)
    return worker_pb2.GetResidencyResponse(
        model_id=manifest.model_id,
        weights_id=manifest.weights_id,
        model_name=name,
        generation=snapshot.generation,
        layers=[worker_pb2.LayerResidency(slots=row) for row in snapshot.slots],
        device_bytes=snapshot.device_bytes,
        host_bytes=snapshot.host_bytes,
        total_bytes=manifest.experts_bytes,
        slots_per_layer=sum(limits.slots) // len(limits.slots),
        layer_slots=limits.slots,
        allocation=limits.allocation,
        split_problem=split_problem,
        experts_per_layer=manifest.num_experts,
        context_length=context_length,
        budget=str(limits.budget),
        running=snapshot.running,
        waiting=snapshot.waiting,
        preload=preload.wanted,
        preloaded=preload.done,
        preload_problem=preload.problem,
        numbers=told(manifest),
        shared_parameters=parameters.shared,
        expert_parameters=parameters.expert,
        recommended=worker_pb2.Sampling(
            temperature=recommended.temperature,
            top_p=recommended.top_p,
            top_k=recommended.top_k,
            min_p=recommended.min_p,
            repetition_penalty=recommended.repetition_penalty,
        ),
        abilities=ABILITIES,
        deny=deny,
    )


def _sampling(message: worker_pb2.Sampling) -> SamplingParams:
    return SamplingParams(
        max_tokens=message.max_tokens,
        temperature=message.temperature,
        top_p=message.top_p or 1.0,
        stop=tuple(message.stop),
        seed=message.seed if message.HasField("seed") else None,
        top_k=message.top_k,
        min_p=message.min_p,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty or 1.0,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        min_tokens=message.min_tokens,
        ignore_eos=message.ignore_eos,
        stop_token_ids=tuple(message.stop_token_ids),
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
    )


def _place(place: PlaceLogprobs) -> worker_pb2.PlaceLogprobs:
    return worker_pb2.PlaceLogprobs(chosen=_token(place.chosen), top=map(_token, place.top))


def _token(token: TokenLogprob) -> worker_pb2.TokenLogprob:
    return worker_pb2.TokenLogprob(
        token_id=token.token_id, text=token.text, special=token.special, logprob=token.logprob
    )


def _format(message: worker_pb2.AnswerFormat) -> AnswerFormat:
    return AnswerFormat(message.json_schema, message.strict)


def _choice(message: worker_pb2.PatternChoice) -> PatternChoice:
    if message.decision not in DECISIONS:
        raise InvalidInput("pattern.decision must say specialist, generalist, full or reject", reason="PATTERN_MISSING")
    return PatternChoice(DECISIONS[message.decision], message.pattern_id, message.task, message.score, message.reason)


def _choice_message(choice: PatternChoice) -> worker_pb2.PatternChoice:
    return worker_pb2.PatternChoice(
        decision=_DECISION_NUMBERS[choice.decision],
        pattern_id=choice.pattern_id,
        task=choice.task,
        score=choice.score,
        reason=choice.reason,
    )


def _finished(event: Finished) -> worker_pb2.Finished:
    return worker_pb2.Finished(
        reason=_FINISH[event.reason],
        prompt_tokens=event.prompt_tokens,
        completion_tokens=event.completion_tokens,
        retained_mass=event.retained_mass,
        first_token_ms=event.first_token_ms,
        decode_ms=event.decode_ms,
        numbers=event.numbers,
    )
