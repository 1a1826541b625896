"""Spans of one answer: what the runtime measured, put into the trace afterwards. Texts are never traced."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace import Span
from premoe_servicekit.telemetry import tracer

from premoe_runtime.engines.base import SequenceTimings
from premoe_runtime.serving.reports import SwapReport
from premoe_worker.domain import Ask, Finished, PatternChoice, Turn


def describe_request(ask: Ask, model: str, prompt_tokens: int) -> None:
    """GenAI attributes of a request, on the current span (OpenTelemetry GenAI conventions)."""
    span = trace.get_current_span()
    chat = not isinstance(ask.prompt, str) and any(isinstance(turn, Turn) for turn in ask.prompt)
    span.set_attribute("gen_ai.operation.name", "chat" if chat else "text_completion")
    span.set_attribute("gen_ai.provider.name", "premoe")
    span.set_attribute("gen_ai.request.model", model)
    span.set_attribute("gen_ai.request.max_tokens", ask.sampling.max_tokens)
    span.set_attribute("gen_ai.request.temperature", ask.sampling.temperature)
    span.set_attribute("gen_ai.usage.input_tokens", prompt_tokens)


def describe_choice(choice: PatternChoice, *, span: Span | None = None) -> None:
    """Which experts run, on ``span`` or the current one."""
    target = span or trace.get_current_span()
    target.set_attribute("premoe.expert_set.id", choice.pattern_id or choice.decision)
    target.set_attribute("premoe.retrieval.score", choice.score)
    target.set_attribute("premoe.retrieval.fallback", choice.decision != "specialist")


class SwapSpan:
    """The span of waiting for a pattern's experts; fetches made for it are its children.

    Opened when residency is asked for, and thrown away unrecorded when everything was resident.
    """

    def __init__(self, choice: PatternChoice) -> None:
        self.span = tracer().start_span("swap")
        self.span.set_attribute("premoe.expert_set.id", choice.pattern_id or choice.decision)

    def end(self, report: SwapReport) -> None:
        """Record what moved, with the phases that the runtime timed."""
        if not report.phases:
            return
        source = "host" if report.bytes_fetched == 0 else "store" if report.bytes_fetched == report.bytes else "mixed"
        self.span.set_attribute("premoe.swap.bytes", report.bytes)
        self.span.set_attribute("premoe.swap.experts_loaded", report.blobs)
        self.span.set_attribute("premoe.swap.experts_evicted", report.evicted)
        self.span.set_attribute("premoe.swap.source", source)
        self.span.set_attribute("premoe.swap.duration", report.milliseconds / 1e3)
        context = trace.set_span_in_context(self.span)
        for phase in report.phases:
            if phase.name == "fetch":
                continue  # the source has opened its own spans, with more to say
            child = tracer().start_span(phase.name, context=context, start_time=phase.start_ns)
            child.end(phase.end_ns)
        self.span.end(max(phase.end_ns for phase in report.phases))

    def fail(self, error: BaseException) -> None:
        """Record that the experts never came."""
        self.span.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
        self.span.end()


def record_steps(timings: SequenceTimings, finished: Finished) -> None:
    """The spans "prefill" and "decode", children of the current one, and the usage on all three."""
    span = trace.get_current_span()
    span.set_attribute("gen_ai.usage.output_tokens", finished.completion_tokens)
    span.set_attribute("gen_ai.response.finish_reasons", [finished.reason])
    span.set_attribute("gen_ai.response.time_to_first_chunk", finished.first_token_ms / 1e3)
    span.set_attribute("premoe.retained_mass", finished.retained_mass)
    first = timings.first_token_ns or timings.finished_ns
    if timings.started_ns:
        prefill = tracer().start_span("prefill", start_time=timings.started_ns)
        prefill.set_attribute("gen_ai.usage.input_tokens", finished.prompt_tokens)
        prefill.end(first)
    if timings.first_token_ns:
        decode = tracer().start_span("decode", start_time=first)
        decode.set_attribute("gen_ai.usage.output_tokens", finished.completion_tokens)
        decode.end(timings.finished_ns)
