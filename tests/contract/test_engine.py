"""The engine contract: what every engine behind the port must do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.engines import EXPERTS, TOP_K, WAIT_SECONDS, Bench, Collector, child_bench, hf_bench, prompt
from support.oracle import masked_selection
from support.tiny import FAMILIES, Family
from support.vllm_bench import Benches, need_vllm, vllm_benches
from transformers import AutoModelForCausalLM

from premoe_runtime.engines.base import (
    Ended,
    MaskRow,
    Publish,
    Published,
    Retire,
    TokenEvent,
)
from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput
from premoe_runtime.formats.ids import ExpertId

__all__ = ["vllm_benches"]

Opener = Callable[..., Bench]
ENGINES: dict[str, Callable[..., AbstractContextManager[Bench]]] = {"hf": hf_bench, "hf in a child": child_bench}


@pytest.fixture(params=[*ENGINES, pytest.param("vllm", marks=pytest.mark.vllm)])
def opened(request: pytest.FixtureRequest, tmp_path: Path, vllm_benches: Benches) -> Iterator[Opener]:
    """Starts engines of one kind, closed at the end of the test; those of vLLM, whose start is long, are shared."""
    if request.param == "vllm":
        need_vllm()
        yield vllm_benches.open
        return
    with ExitStack() as stack:

        def start(**options: Any) -> Bench:
            return stack.enter_context(ENGINES[request.param](tmp_path, **options))

        yield start


class Gate:
    """Holds the thread that reports at a sequence's first event until it is opened; an engine's own, if it has one."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def __call__(self, event: TokenEvent) -> None:
        assert self._open.wait(WAIT_SECONDS)

    def open(self) -> None:
        self._open.set()


def stock_greedy(bench: Bench, token_ids: list[int], row: int, count: int) -> list[int]:
    """The unmodified class's ``generate`` under the same mask."""
    stock = AutoModelForCausalLM.from_pretrained(
        bench.folder, dtype=torch.float32, attn_implementation="sdpa", experts_implementation="grouped_mm"
    ).eval()
    with masked_selection(bench.kept[row][None], torch.zeros(1, dtype=torch.int64)) as seen:
        output = stock.generate(
            torch.tensor([token_ids]),
            attention_mask=torch.ones(1, len(token_ids), dtype=torch.int64),
            max_new_tokens=count,
            do_sample=False,
        )
    assert seen.share_changed >= 0.3
    tokens: list[int] = output[0, len(token_ids) :].tolist()
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_the_stock_generate_under_the_same_mask(opened: Opener, family: Family) -> None:
    bench = opened(family=family, prefill_tokens=16)
    for row in range(3):
        asked = prompt(21 + 5 * row, seed=row)
        assert bench.run(asked, row=row, max_tokens=24).tokens == stock_greedy(bench, asked, row, 24)


@pytest.mark.parametrize(
    ("family", "window"),
    [
        ("mixtral", {}),
        ("qwen3_moe", {"use_sliding_window": True}),
        # Every other block of Qwen2-MoE sees everything.
        ("qwen2_moe", {"use_sliding_window": True, "num_hidden_layers": 2}),
    ],
)
def test_a_sliding_window_equals_the_stock_generate(opened: Opener, family: Family, window: dict[str, Any]) -> None:
    refused = None
    try:
        bench = opened(family=family, prefill_tokens=16, overrides={"sliding_window": 8, **window})
    except InvalidInput as error:
        refused = error
    if refused is not None:
        # vLLM gives every block of Qwen2-MoE a window.
        assert (family, refused.reason) == ("qwen2_moe", "ENGINE_UNSUPPORTED")
        assert "looks back" in str(refused)
        return
    asked = prompt(40)
    assert bench.run(asked, max_tokens=20).tokens == stock_greedy(bench, asked, 0, 20)


def test_mixed_patterns_in_one_batch_give_the_tokens_of_one_by_one(opened: Opener) -> None:
    bench = opened(max_sequences=6, prefill_tokens=24)
    jobs = [(prompt(6 + 9 * index, seed=index), index % 3, 1 + index % TOP_K) for index in range(10)]
    alone = [bench.run(asked, row=row, active=active, max_tokens=20) for asked, row, active in jobs]
    gate = Gate()
    first = bench.submit(prompt(4), gate=gate)
    together = [bench.submit(asked, row=row, active=active, max_tokens=20) for asked, row, active in jobs]
    gate.open()
    for one, other in zip(alone, together, strict=True):
        assert other.wait().tokens == one.tokens
        assert other.text == one.text
        assert other.last.retained_mass == pytest.approx(one.last.retained_mass, abs=1e-5)
    first.wait()


def test_a_request_starts_before_the_running_one_ends(opened: Opener) -> None:
    bench = opened()
    order: list[str] = []
    long = bench.submit(prompt(5), max_tokens=800, gate=lambda event: order.append("long")).wait_first()
    short = bench.submit(prompt(9, seed=1), row=1, max_tokens=3, gate=lambda event: order.append("short"))
    short.wait()
    assert not long.ended.is_set()
    long.wait()
    assert order[0] == order[-1] == "long"


def test_decoding_goes_on_while_a_long_prompt_is_prefilled(opened: Opener) -> None:
    bench = opened(prefill_tokens=8, context=512)
    decoding = bench.submit(prompt(4), max_tokens=400).wait_first()
    before = len(decoding.tokens)
    long = bench.submit(prompt(200, seed=1), max_tokens=1).wait()
    assert not decoding.ended.is_set()
    # 25 pieces of 8 tokens, and the other sequence moves on by one token beside each of them.
    assert len(decoding.tokens) - before >= 24
    assert long.last.finish == "length"


def note(order: list[int], index: int, event: TokenEvent) -> None:
    order.append(index)


def test_more_requests_than_rows_all_end_in_order_of_arrival(opened: Opener) -> None:
    bench = opened(max_sequences=2)
    order: list[int] = []
    jobs = [bench.submit(prompt(4, seed=index), max_tokens=4, gate=partial(note, order, index)) for index in range(7)]
    for job in jobs:
        assert job.wait().last.finish == "length"
    firsts = [order.index(index) for index in range(7)]
    assert firsts == sorted(firsts)


def test_of_those_who_wait_the_smallest_priority_runs_first_and_nobody_is_sent_back(opened: Opener) -> None:
    bench = opened(max_sequences=1, context=1024)
    order: list[int] = []
    running = bench.submit(prompt(4), max_tokens=1000, priority=9).wait_first()
    jobs = [
        bench.submit(prompt(4, seed=index), max_tokens=2, priority=priority, gate=partial(note, order, index))
        for index, priority in enumerate((3, 0, 3, 1, 0))
    ]
    bench.boundary()
    assert order == []
    running.cancel()
    for job in jobs:
        assert job.wait().last.finish == "length"
    assert running.wait().last.finish == "cancelled"
    assert list(dict.fromkeys(order)) == [1, 4, 3, 0, 2]


def test_a_seed_repeats_whatever_else_runs(opened: Opener) -> None:
    bench = opened()
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 1.0, "top_p": 0.9, "seed": 11}
    alone = bench.run(prompt(8), **options)
    others = [bench.submit(prompt(5, seed=index), row=1, max_tokens=30, temperature=1.0) for index in range(3)]
    assert bench.run(prompt(8), **options).tokens == alone.tokens
    assert bench.run(prompt(8), **{**options, "seed": 12}).tokens != alone.tokens
    for other in others:
        other.wait()


def test_events_carry_tokens_text_and_one_end(opened: Opener) -> None:
    bench = opened()
    ran = bench.run(prompt(8), max_tokens=12)
    assert ran.last.finish == "length"
    assert len(ran.tokens) == 12
    assert ran.text == bench.tokenizer.decode(ran.tokens, skip_special_tokens=True)
    assert [event.last for event in ran.events] == [False] * 11 + [True]
    assert all(event.retained_mass is None and event.timings is None for event in ran.events[:-1])
    assert ran.last.retained_mass is not None
    assert 0 < ran.last.retained_mass < 1
    timings = ran.last.timings
    assert timings is not None
    assert 0 < timings.submitted_ns <= timings.started_ns <= timings.first_token_ns <= timings.finished_ns


def test_a_full_row_retains_everything(opened: Opener) -> None:
    bench = opened(rows=1, kept_per_layer=EXPERTS)
    assert bench.run(prompt(8), max_tokens=4).last.retained_mass == pytest.approx(1.0)


def test_the_end_token_stops(opened: Opener) -> None:
    bench = opened()
    free = bench.run(prompt(8), max_tokens=12).tokens
    ending = opened(overrides={"eos_token_id": [free[5]]})
    ran = ending.run(prompt(8), max_tokens=12)
    assert ran.last.finish == "stop"
    assert ran.tokens == free[: free.index(free[5]) + 1]
    assert ran.text == bench.tokenizer.decode(ran.tokens[:-1], skip_special_tokens=True)


def test_a_stop_string_ends_the_answer_before_itself(opened: Opener) -> None:
    bench = opened()
    free = bench.run(prompt(8), max_tokens=40).text
    start = next(i for i in range(5, len(free) - 2) if "\ufffd" not in free[i : i + 2])
    stop = free[start : start + 2]
    ran = bench.run(prompt(8), max_tokens=40, stop=(stop, "never seen"))
    assert ran.last.finish == "stop"
    assert ran.text == free[: free.index(stop)]


def test_biases_and_penalties_choose_other_tokens_and_leave_the_neighbours_alone(opened: Opener) -> None:
    bench = opened()
    plain = bench.run(prompt(8), max_tokens=12).tokens
    gate = Gate()
    first = bench.submit(prompt(4), gate=gate)
    wishes: list[dict[str, Any]] = [
        {"logit_bias": ((7, 100.0),)},
        {"logit_bias": ((7, 100.0), (plain[0], 100.0)), "presence_penalty": 2.0},
        {"repetition_penalty": 1000.0},
        {},
    ]
    biased, presence, repeated, beside = [bench.submit(prompt(8), max_tokens=12, **wish) for wish in wishes]
    gate.open()
    assert beside.wait().tokens == plain
    assert set(biased.wait().tokens) == {7}
    assert {*presence.wait().tokens} == {7, plain[0]}
    # Whatever stood in prompt or answer has next to no chance again.
    assert len(set(repeated.wait().tokens) - set(prompt(8))) == 12
    first.wait()


def test_an_answer_ends_where_the_request_says(opened: Opener) -> None:
    bench = opened()
    free = bench.run(prompt(8), max_tokens=12).tokens
    ending = opened(overrides={"eos_token_id": [free[5]]})
    stopped = free.index(free[5]) + 1
    assert ending.run(prompt(8), max_tokens=12, ignore_eos=True).tokens == free
    named = bench.run(prompt(8), max_tokens=12, stop_token_ids=(free[5], 3))
    assert (named.tokens, named.last.finish) == (free[:stopped], "stop")
    assert named.text == bench.tokenizer.decode(named.tokens[:-1], skip_special_tokens=True)
    wishes: list[tuple[Bench, dict[str, Any]]] = [(ending, {}), (bench, {"stop_token_ids": (free[5],)})]
    for each, wish in wishes:
        late = each.run(prompt(8), max_tokens=stopped + 3, min_tokens=stopped + 2, **wish)
        assert len(late.tokens) >= stopped + 2
        assert free[5] not in late.tokens[: stopped + 2]


def test_a_stop_string_that_comes_too_early_ends_nothing(opened: Opener) -> None:
    bench = opened()
    free = bench.run(prompt(8), max_tokens=40)
    stop = free.text[0]
    assert bench.run(prompt(8), max_tokens=40, stop=(stop,)).text == ""
    kept = bench.run(prompt(8), max_tokens=40, stop=(stop,), min_tokens=40)
    assert (kept.text, kept.tokens) == (free.text, free.tokens)


def test_log_probabilities_are_the_model_s_own(opened: Opener) -> None:
    """With and without their neighbours' wishes, and before all that changes what is chosen."""
    bench = opened(prefill_tokens=16)
    asked = prompt(40)
    found = bench.run(asked, max_tokens=6, logprobs=3, prompt_logprobs=2)
    places = [each for event in found.events for each in event.logprobs]
    assert [each.token_id for each in places] == found.tokens
    for each in places:
        assert len(each.top) == 3
        # Greedy: the chosen one is the likeliest.
        assert each.top[0][1] == each.logprob == max(value for _, value in each.top) < 0
    told = found.events[0].prompt_logprobs
    assert [each.token_id for each in told] == asked[1:]
    assert all(len(each.top) == 2 for each in told)
    assert not any(event.prompt_logprobs for event in found.events[1:])
    # A prompt's token is as likely as if it had been made there.
    for place in (1, 15, 16, 39):
        forced = bench.run(asked[:place], max_tokens=1, logprobs=0, logit_bias=((asked[place], 100.0),))
        (made,) = forced.last.logprobs
        assert (made.token_id, made.top) == (asked[place], ())
        assert made.logprob == pytest.approx(told[place - 1].logprob, abs=1e-4)
    assert all(not event.logprobs for event in bench.run(asked, max_tokens=6).events)


def test_the_prompt_s_log_probabilities_are_told_once_though_it_is_computed_again(opened: Opener) -> None:
    bench = opened(max_sequences=1, parked_bytes=0, prefill_tokens=16)
    expected = bench.run(prompt(40), max_tokens=60, prompt_logprobs=1)
    paused = bench.submit(prompt(40), max_tokens=60, prompt_logprobs=1).wait_first()
    bench.pause(paused.request_id)
    bench.boundary()
    bench.run(prompt(25, seed=4), row=1, max_tokens=3)
    bench.resume(paused.request_id)
    assert paused.wait().tokens == expected.tokens
    told = [each for event in paused.events for each in event.prompt_logprobs]
    assert [each.token_id for each in told] == prompt(40)[1:]


def test_the_context_bounds_the_answer(opened: Opener) -> None:
    bench = opened(context=32)
    assert bench.engine.limits.context == 32
    ran = bench.run(prompt(28), max_tokens=100)
    assert ran.last.finish == "length"
    assert len(ran.tokens) == 4
    assert len(bench.run(prompt(31), max_tokens=100).tokens) == 1


@pytest.mark.parametrize(
    ("token_ids", "options", "reason"),
    [
        ([], {}, "PROMPT_EMPTY"),
        ([1] * 32, {}, "CONTEXT_LENGTH_EXCEEDED"),
        ([1, -1], {}, "TOKEN_ID_INVALID"),
        ([1, 10_000], {}, "TOKEN_ID_INVALID"),
        ([1], {"max_tokens": 0}, "MAX_TOKENS_INVALID"),
        ([1], {"active": 0}, "ACTIVE_EXPERTS_INVALID"),
        ([1], {"active": TOP_K + 1}, "ACTIVE_EXPERTS_INVALID"),
        ([1], {"logit_bias": ((10_000, 1.0),)}, "LOGIT_BIAS_INVALID"),
        ([1], {"stop_token_ids": (10_000,)}, "STOP_TOKEN_IDS_INVALID"),
        ([1], {"min_tokens": 5, "max_tokens": 4}, "MIN_TOKENS_INVALID"),
        ([1], {"logprobs": 21}, "LOGPROBS_INVALID"),
    ],
)
def test_requests_that_can_never_run_are_refused(
    opened: Opener, token_ids: list[int], options: dict[str, Any], reason: str
) -> None:
    bench = opened(context=32)
    request = bench.request(token_ids, **options)
    with pytest.raises(InvalidInput) as caught:
        bench.engine.limits.check(request.token_ids, request.active, request.sampling)
    assert caught.value.reason == reason
    (event,) = bench.submit(token_ids, **options).wait().events
    assert isinstance(event.error, InvalidInput)
    assert (bench.reports.last.running, bench.reports.last.waiting) == (0, 0)


def test_an_id_in_use_is_refused(opened: Opener) -> None:
    bench = opened(context=1024)
    running = bench.submit(prompt(4), max_tokens=900).wait_first()
    events: list[TokenEvent] = []
    bench.reports.collectors[running.request_id] = events.append  # type: ignore[assignment]
    bench.engine.post(replace(bench.request(prompt(4)), request_id=running.request_id))
    bench.boundary()
    running.cancel()
    bench.boundary()
    (refusal,) = [event for event in events if event.error is not None]
    assert isinstance(refusal.error, Conflict)
    assert events[-1].finish == "cancelled"


def test_cancel_frees_the_row_at_once(opened: Opener) -> None:
    bench = opened(max_sequences=1, context=1024)
    running = bench.submit(prompt(4), max_tokens=1000).wait_first()
    queued = bench.submit(prompt(4, seed=2), max_tokens=3)
    waiting = bench.submit(prompt(4, seed=1), max_tokens=3)
    queued.cancel()
    assert queued.wait().last.finish == "cancelled"
    assert queued.tokens == []
    assert not running.ended.is_set()
    running.cancel()
    running.cancel()
    assert running.wait().last.finish == "cancelled"
    assert waiting.wait().last.finish == "length"
    assert len(running.tokens) < 1000
    waiting.cancel()
    bench.boundary()
    assert (bench.reports.last.running, bench.reports.last.waiting) == (0, 0)


@pytest.mark.parametrize("parked_bytes", [None, 0])
def test_a_paused_sequence_goes_on_as_if_nothing_had_been(opened: Opener, parked_bytes: int | None) -> None:
    """Its KV is parked in host memory, or, where there is no room, computed again."""
    bench = opened(max_sequences=1, parked_bytes=parked_bytes)
    expected = bench.run(prompt(20), max_tokens=400).tokens
    paused = bench.submit(prompt(20), max_tokens=400)
    paused.wait_first()
    bench.pause(paused.request_id, "unknown")
    bench.boundary()
    before = len(paused.tokens)
    # The only row goes to another sequence meanwhile, and back.
    other = bench.run(prompt(25, seed=4), row=1, max_tokens=10)
    assert other.last.finish == "length"
    assert len(paused.tokens) == before < 400
    bench.resume(paused.request_id)
    assert paused.wait().tokens == expected


def test_a_paused_sequence_can_be_cancelled(opened: Opener) -> None:
    bench = opened(context=1024)
    paused = bench.submit(prompt(4), max_tokens=900).wait_first()
    bench.pause(paused.request_id)
    paused.cancel()
    assert paused.wait().last.finish == "cancelled"


def test_rows_published_at_a_boundary_hold_from_the_next_step(opened: Opener) -> None:
    bench = opened(rows=2)
    asked = prompt(12)
    one, other = (bench.run(asked, row=row, max_tokens=8).tokens for row in range(2))
    assert one != other
    bench.engine.post(Publish((), MaskRow(0, bench.kept[1].numpy(), "selection")))
    assert isinstance(bench.reports.other.get(timeout=WAIT_SECONDS), Published)
    assert bench.run(asked, row=0, max_tokens=8).tokens == other


def test_experts_are_retired_copied_and_published_while_others_decode(opened: Opener) -> None:
    """The three steps of a swap, in the order posted; bytes and tables are right after each."""
    bench = opened(context=1024, host_blobs=4)
    running = bench.submit(prompt(4), max_tokens=900).wait_first()
    kept = {ExpertId(*pair) for pair in bench.kept[0].nonzero().tolist()}
    victim = next(expert for expert in bench.slots if expert.layer == 0 and expert not in kept)
    newcomer = next(expert for expert in bench.source.blobs if expert.layer == 0 and expert not in bench.slots)
    bench.slots[newcomer] = bench.slots.pop(victim)
    bench.engine.post(Retire((victim,)))
    loaded = bench.load(bench.place(newcomer, 1))
    assert loaded.copied.written == {newcomer}
    assert 0 < loaded.retired_ns <= loaded.copied.end_ns
    bench.boundary()
    row = bench.kept[0].clone()
    row[0] = False
    row[newcomer] = True
    bench.publish(newcomer, row=MaskRow(1, row.numpy(), "selection"))
    assert bench.run(prompt(6), row=1, active=1, max_tokens=4).last.finish == "length"
    bench.boundary()
    assert not running.ended.is_set()
    running.cancel()
    running.wait()


def test_nothing_that_a_damaged_expert_computed_is_used_again(opened: Opener) -> None:
    """Neither by whoever asks the same under the same KV key, nor by who gets the memory next."""
    bench = opened(context=1024, host_blobs=4)

    def answer(kv_key: str, length: int = 300) -> Collector:
        request = replace(bench.request(prompt(length, seed=length), max_tokens=4), kv_key=kv_key)
        return bench.post(request, Collector(request.request_id)).wait()

    def bring(expert: ExpertId, damage: bool) -> None:
        bench.engine.post(Retire((expert,)))
        blob = bench.place(expert, 0)
        if damage:
            bench.arena.blob(0).fill_(255)
        bench.load(blob)
        bench.publish(expert)

    sound, other = answer("sound").tokens, answer("sound", 37).tokens
    of_row = [ExpertId(*pair) for pair in bench.kept[0].nonzero().tolist() if pair[0] == 0]
    for expert in of_row:
        bring(expert, damage=True)
    damaged = answer("damaged").last.error
    assert isinstance(damaged, CorruptData)
    assert damaged.reason == "LOGITS_INVALID"
    for expert in of_row:
        bring(expert, damage=False)
    assert answer("other", 37).tokens == other
    assert answer("damaged").tokens == sound
    bench.boundary()


def test_stats_count(opened: Opener) -> None:
    bench = opened()
    before = bench.reports.last
    bench.run(prompt(9), max_tokens=4)
    bench.run(prompt(5), max_tokens=2)
    report = bench.reports.last
    assert report.prompt_tokens - before.prompt_tokens == 14
    assert report.completion_tokens - before.completion_tokens == 6
    assert report.steps - before.steps >= 6
    assert report.kv_used == 0


def test_close_cancels_and_refuses(opened: Opener) -> None:
    bench = opened(max_sequences=1, context=1024)
    running = bench.submit(prompt(4), max_tokens=900).wait_first()
    waiting = bench.submit(prompt(4), max_tokens=3)
    bench.engine.close()
    assert running.wait().last.finish == "cancelled"
    assert waiting.wait().last.finish == "cancelled"
    assert bench.reports.ended == [Ended(None)]
    bench.submit(prompt(4))
    bench.engine.close()
    assert bench.reports.ended == [Ended(None)]


def test_random_traffic_leaves_nothing_behind(opened: Opener) -> None:
    bench = opened(max_sequences=3, prefill_tokens=16)
    generator = torch.Generator().manual_seed(5)

    def pick(limit: int) -> int:
        return int(torch.randint(0, limit, (), generator=generator))

    jobs = []
    for index in range(30):
        jobs.append(bench.submit(prompt(1 + pick(40), seed=index), row=pick(3), max_tokens=1 + pick(12)))
        if pick(3) == 0:
            jobs[pick(len(jobs))].cancel()
        if pick(4) == 0:
            some = [job.request_id for job in jobs if pick(2)]
            bench.pause(*some)
            bench.resume(*some)
    assert {job.wait().last.finish for job in jobs} <= {"length", "stop", "cancelled"}
    assert all(job.last.error is None for job in jobs)
    bench.boundary()
    assert (bench.reports.last.running, bench.reports.last.waiting) == (0, 0)
