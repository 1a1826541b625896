"""Answers under a grammar: what every engine must do, in mixed batches, with stops, cancellations and bad grammars."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import llguidance
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from premoe_worker.domain import AnswerFormat, Ask
from support.engines import WAIT_SECONDS, Bench, Collector, child_bench, hf_bench, prompt
from support.grammars import grammar_of
from support.sources import MemorySource
from support.tiny import tiny_checkpoint
from support.vllm_bench import Benches, need_vllm, vllm_benches

from premoe_runtime.engines.grammar import Grammars, Matcher
from premoe_runtime.engines.hf.tokenizer import load_tokenizer
from premoe_runtime.formats.errors import InvalidInput

__all__ = ["vllm_benches"]

pytestmark = pytest.mark.timeout(600)  # every new schema is compiled in a process first
ENGINES: dict[str, Callable[..., AbstractContextManager[Bench]]] = {"hf": hf_bench, "hf in a child": child_bench}
POINT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "size": {"enum": [1, 22, 333]},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "size", "ok"],
    "additionalProperties": False,
}
Json = dict[str, Any]


@pytest.fixture(params=[*ENGINES, pytest.param("vllm", marks=pytest.mark.vllm)])
def bench(request: pytest.FixtureRequest, tmp_path: Path, vllm_benches: Benches) -> Iterator[Bench]:
    if request.param == "vllm":
        need_vllm()
        yield vllm_benches.open(max_sequences=6)
        return
    with ExitStack() as stack:
        yield stack.enter_context(ENGINES[request.param](tmp_path, max_sequences=6))


def grammar(schema: Json) -> str:
    return grammar_of(Ask("", format=AnswerFormat(json.dumps(schema), strict=True)))


def ask(bench: Bench, schema: Json, seed: int = 0, **sampling: Any) -> Collector:
    options = {"max_tokens": 400, "temperature": 1.5, "seed": seed, **sampling}
    request = replace(bench.request(prompt(9, seed=seed), **options), grammar=grammar(schema))
    return bench.post(request, Collector(request.request_id))


def end_ids(bench: Bench) -> set[int]:
    found = bench.tokenizer.convert_tokens_to_ids(["<|end|>", "<|pad|>"])
    return set(found)


def test_answers_have_the_shape_that_was_asked_for_beside_others(bench: Bench) -> None:
    alone = [bench.run(prompt(6, seed=seed), max_tokens=30, temperature=1.0, seed=seed).tokens for seed in range(3)]
    shaped = [ask(bench, POINT, seed) for seed in range(6)]
    free = [bench.submit(prompt(6, seed=seed), max_tokens=30, temperature=1.0, seed=seed) for seed in range(3)]
    valid = jsonschema_rs.validator_for(POINT)
    for answer in shaped:
        assert answer.wait().last.finish == "stop"
        valid.validate(json.loads(answer.text))
        assert not end_ids(bench) & set(answer.tokens[:-1])
    assert len({answer.text for answer in shaped}) > 1
    assert [answer.wait().tokens for answer in free] == alone


def test_where_one_answer_is_allowed_it_is_given(bench: Bench) -> None:
    wanted = {"a": ["é", None]}
    assert json.loads(ask(bench, {"const": wanted}, temperature=0.0).wait().text) == wanted


def test_a_stop_string_and_a_limit_end_it_too(bench: Bench) -> None:
    stopped = ask(bench, {"const": "abcdef"}, stop=("d",)).wait()
    assert (stopped.text, stopped.last.finish) == ('"abc', "stop")
    cut = ask(bench, {"const": "abcdef"}, max_tokens=3).wait()
    assert (cut.text, cut.last.finish) == ('"ab', "length")


def test_a_cancelled_one_ends_once_whether_or_not_its_grammar_is_ready(bench: Bench) -> None:
    answers = [ask(bench, {"type": "array", "items": {"enum": [seed]}}, seed, max_tokens=900) for seed in range(8)]
    for answer in answers:
        answer.cancel()
    for answer in answers:
        assert answer.wait().last.finish in ("cancelled", "stop")
    bench.boundary()
    assert ask(bench, POINT).wait().last.finish == "stop"


def test_grammars_of_requests_that_are_gone_are_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_, asked, go = Grammars.compile, list[str](), threading.Event()

    def held(grammars: Grammars, text: str) -> Matcher:
        asked.append(text)
        assert go.wait(WAIT_SECONDS)
        return compile_(grammars, text)

    monkeypatch.setattr(Grammars, "compile", held)
    with hf_bench(tmp_path, max_sequences=6) as bench:
        schemas = [{"const": f"gone {number}"} for number in range(4)]
        gone = [ask(bench, schema) for schema in schemas]
        for answer in gone:
            answer.cancel()
        for answer in gone:
            assert answer.wait().last.finish == "cancelled"
        stays = ask(bench, POINT)
        go.set()
        assert stays.wait().last.finish == "stop"
    assert asked in ([grammar(POINT)], [grammar(schemas[0]), grammar(POINT)])


def test_of_costly_grammars_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("premoe_runtime.engines.grammar.time.thread_time", lambda: float(next(clock)))
    tokenizer = load_tokenizer(MemorySource(tiny_checkpoint(tmp_path)))
    grammars, made = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id]), list[str]()

    def noted(tokens: Any, text: str, **options: Any) -> llguidance.LLMatcher:
        made.append(text)
        return matcher(tokens, text, **options)

    matcher = llguidance.LLMatcher
    monkeypatch.setattr(llguidance, "LLMatcher", noted)
    texts = [json.dumps({"grammars": [{"json_schema": {"const": number}}]}) for number in range(6)]
    for text in [*texts, *reversed(texts)]:
        grammars.compile(text)
    assert made == [*texts, texts[1], texts[0]]


def test_a_bad_grammar_fails_nobody_else(bench: Bench) -> None:
    good = ask(bench, POINT)
    bad = replace(bench.request(prompt(4)), grammar="no grammar")
    failed = bench.post(bad, Collector(bad.request_id)).wait()
    assert isinstance(failed.last.error, InvalidInput)
    assert failed.last.error.reason == "GRAMMAR_INVALID"
    assert good.wait().last.finish == "stop"


def test_a_paused_one_goes_on_where_it_was(bench: Bench) -> None:
    schema = {"type": "array", "items": {"enum": ["abc"]}, "minItems": 20, "maxItems": 20}
    answer = ask(bench, schema, max_tokens=900).wait_first()
    bench.pause(answer.request_id)
    bench.boundary()
    bench.resume(answer.request_id)
    assert json.loads(answer.wait().text) == ["abc"] * 20


SCALARS = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
              st.integers(-50, 50), st.integers(0, 300)),
    st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
              st.integers(0, 3), st.integers(0, 4)),
    st.lists(st.one_of(st.text(max_size=4), st.integers(), st.none(), st.booleans()), min_size=1, max_size=4)
    .map(lambda values: {"enum": values}),
    st.sampled_from(["^[a-c]{1,3}$", "^(x|yy)-[0-9]{2}$"]).map(lambda text: {"type": "string", "pattern": text}),
    st.sampled_from(["date", "time", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name}),
)  # fmt: skip
NAMES = st.text(st.characters(codec="utf-8"), max_size=4)


def larger(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    return st.one_of(
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        st.dictionaries(NAMES, inner, max_size=3).flatmap(
            lambda properties: (
                st.lists(st.sampled_from(sorted(properties)), unique=True).map(
                    lambda required: {
                        "type": "object",
                        "properties": properties,
                        "required": required,
                        "additionalProperties": False,
                    }
                )
                if properties
                else st.just({"type": "object", "additionalProperties": False})
            )
        ),
    )


def test_strict_answers_parse_and_validate_for_random_schemas(tmp_path: Path) -> None:
    found = {"whole": 0, "cut": 0}
    with hf_bench(tmp_path) as bench:

        @given(st.recursive(SCALARS, larger, max_leaves=4), st.integers(0, 2**32))
        @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def check(schema: Json, seed: int) -> None:
            answer = ask(bench, schema, seed, max_tokens=700, temperature=1.0).wait()
            assert answer.last.error is None
            if answer.last.finish == "length":
                found["cut"] += 1
                return
            found["whole"] += 1
            jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(answer.text))

        check()
    assert found["whole"] > 5 * found["cut"]
