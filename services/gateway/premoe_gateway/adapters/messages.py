"""Domain values to protobuf messages and back."""

from __future__ import annotations

from collections.abc import Iterable

from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2

from premoe_gateway.domain import (
    AnswerFormat,
    Ask,
    Called,
    Delta,
    Event,
    Finished,
    FinishReason,
    PatternChoice,
    PlaceLogprobs,
    Recommended,
    Sampling,
    Started,
    Swap,
    TokenLogprob,
    Tool,
    ToolCall,
    Tools,
    Turn,
    WorkerState,
)
from premoe_runtime.formats.choices import DecisionKind, OnUnknown
from premoe_runtime.formats.errors import Unavailable

_DECISIONS: dict[DecisionKind, patterns_pb2.Decision.ValueType] = {
    "specialist": patterns_pb2.DECISION_SPECIALIST,
    "generalist": patterns_pb2.DECISION_GENERALIST,
    "full": patterns_pb2.DECISION_FULL,
    "reject": patterns_pb2.DECISION_REJECT,
}
_DECISION_NAMES = {number: name for name, number in _DECISIONS.items()}
_POLICIES: dict[OnUnknown | None, patterns_pb2.OnUnknown.ValueType] = {
    None: patterns_pb2.ON_UNKNOWN_UNSPECIFIED,
    "generalist": patterns_pb2.ON_UNKNOWN_GENERALIST,
    "full": patterns_pb2.ON_UNKNOWN_FULL,
    "reject": patterns_pb2.ON_UNKNOWN_REJECT,
}
_FINISH: dict[worker_pb2.FinishReason.ValueType, FinishReason] = {
    worker_pb2.FINISH_REASON_STOP: "stop",
    worker_pb2.FINISH_REASON_LENGTH: "length",
    worker_pb2.FINISH_REASON_CANCELLED: "cancelled",
    worker_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}

_NOBODY = frozenset({-1})
"""What stands for an empty slot."""


def prompt_message(ask: Ask) -> worker_pb2.Prompt:
    prompt = ask.prompt
    if isinstance(prompt, str):
        return worker_pb2.Prompt(text=prompt)
    turns = [turn for turn in prompt if isinstance(turn, Turn)]
    if turns:
        chat = worker_pb2.Chat(
            messages=map(_message, turns),
            tools=map(_tool, ask.tools.offered),
            template_arguments=ask.template_arguments,
        )
        return worker_pb2.Prompt(chat=chat)
    ids = [item for item in prompt if isinstance(item, int)]
    return worker_pb2.Prompt(token_ids=worker_pb2.TokenIds(ids=ids))


def generate_request(ask: Ask, choice: PatternChoice, recommended: Recommended) -> worker_pb2.GenerateRequest:
    return worker_pb2.GenerateRequest(
        prompt=prompt_message(ask),
        sampling=_sampling(ask.sampling, recommended),
        pattern=worker_pb2.PatternChoice(
            decision=_DECISIONS[choice.decision],
            pattern_id=choice.pattern_id,
            task=choice.task,
            score=choice.score,
            reason=choice.reason,
        ),
        active_experts=ask.active_experts,
        model=ask.model,
        format=_format(ask.format),
        tool_choice=_tool_choice(ask.tools),
        priority=ask.priority,
        cache_salt=ask.cache_salt,
        deny=ask.deny,
    )


def event(response: worker_pb2.GenerateResponse) -> Event:
    """One event of an answer. Raises Unavailable for a kind this gateway does not know."""
    kind = response.WhichOneof("event")
    if kind == "started":
        return _started(response.started)
    if kind == "delta":
        delta = response.delta
        ids = tuple(delta.token_ids)
        return Delta(delta.text, _places(delta.logprobs), _places(delta.prompt_logprobs), ids, len(ids))
    if kind == "tool_call":
        called = response.tool_call
        return Called(ToolCall(called.id, called.name, called.arguments))
    if kind == "finished":
        return _finished(response.finished)
    raise Unavailable("the worker sent an event of an unknown kind", reason="UNKNOWN_EVENT")


def policy(on_unknown: OnUnknown | None) -> patterns_pb2.OnUnknown.ValueType:
    return _POLICIES[on_unknown]


def decision(number: patterns_pb2.Decision.ValueType) -> DecisionKind:
    """Raises Unavailable for a number this gateway does not know."""
    if number not in _DECISION_NAMES:
        raise Unavailable(f"unknown decision {number} in an answer", reason="UNKNOWN_DECISION")
    return _DECISION_NAMES[number]


def worker_state(address: str, residency: worker_pb2.GetResidencyResponse) -> WorkerState:
    return WorkerState(
        address=address,
        model=residency.model_name,
        weights_id=residency.weights_id,
        running=residency.running,
        waiting=residency.waiting,
        slots=residency.slots_per_layer,
        layer_slots=tuple(residency.layer_slots),
        residents=tuple(frozenset(layer.slots) - _NOBODY for layer in residency.layers),
        generation=residency.generation,
        device_bytes=residency.device_bytes,
        total_bytes=residency.total_bytes,
        allocation=residency.allocation or "uniform",
        experts=residency.experts_per_layer,
        context_length=residency.context_length,
        budget=residency.budget,
        split_problem=residency.split_problem,
        recommended=_recommended(residency),
        abilities=frozenset(residency.abilities),
        numbers=residency.numbers,
        deny=tuple(residency.deny),
        shared_parameters=residency.shared_parameters,
        expert_parameters=residency.expert_parameters,
    )


def _recommended(residency: worker_pb2.GetResidencyResponse) -> Recommended:
    """A worker of an older version says nothing."""
    if not residency.HasField("recommended"):
        return Recommended()
    said = residency.recommended
    return Recommended(said.temperature, said.top_p or 1.0, said.top_k, said.min_p, said.repetition_penalty or 1.0)


def _sampling(sampling: Sampling, recommended: Recommended) -> worker_pb2.Sampling:
    return worker_pb2.Sampling(
        max_tokens=sampling.max_tokens,
        temperature=recommended.temperature if sampling.temperature is None else sampling.temperature,
        top_p=recommended.top_p if sampling.top_p is None else sampling.top_p,
        top_k=recommended.top_k if sampling.top_k is None else sampling.top_k,
        stop=sampling.stop,
        seed=sampling.seed,
        min_p=recommended.min_p if sampling.min_p is None else sampling.min_p,
        repetition_penalty=(
            recommended.repetition_penalty if sampling.repetition_penalty is None else sampling.repetition_penalty
        ),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias),
        min_tokens=sampling.min_tokens,
        ignore_eos=sampling.ignore_eos,
        stop_token_ids=sampling.stop_token_ids,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
    )


def _message(turn: Turn) -> worker_pb2.Message:
    calls = (worker_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in turn.tool_calls)
    return worker_pb2.Message(role=turn.role, content=turn.content, tool_calls=calls, tool_call_id=turn.tool_call_id)


def _tool(tool: Tool) -> worker_pb2.Tool:
    return worker_pb2.Tool(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)


def _tool_choice(tools: Tools) -> worker_pb2.ToolChoice | None:
    if not tools.offered:
        return None
    return worker_pb2.ToolChoice(required=tools.required, name=tools.name, single=tools.single)


def _format(wanted: AnswerFormat | None) -> worker_pb2.AnswerFormat | None:
    return None if wanted is None else worker_pb2.AnswerFormat(json_schema=wanted.schema, strict=wanted.strict)


def _places(places: Iterable[worker_pb2.PlaceLogprobs]) -> tuple[PlaceLogprobs, ...]:
    return tuple(PlaceLogprobs(_token(place.chosen), tuple(map(_token, place.top))) for place in places)


def _token(token: worker_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token.text, token.special, token.logprob if token.HasField("logprob") else None)


def _started(started: worker_pb2.Started) -> Started:
    pattern = started.pattern
    choice = PatternChoice(decision(pattern.decision), pattern.pattern_id, pattern.task, pattern.score, pattern.reason)
    swap = Swap(started.swap.blobs_loaded, started.swap.bytes_loaded, started.swap.milliseconds)
    return Started(choice, started.prompt_tokens, swap)


def _finished(finished: worker_pb2.Finished) -> Finished:
    return Finished(
        reason=_FINISH.get(finished.reason, "stop"),
        prompt_tokens=finished.prompt_tokens,
        completion_tokens=finished.completion_tokens,
        retained_mass=finished.retained_mass,
        first_token_ms=finished.first_token_ms,
        decode_ms=finished.decode_ms,
        numbers=finished.numbers,
    )
