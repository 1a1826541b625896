"""Streams are read the same however the network cuts them, and what is no answer is named."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_local.bench.stream import MAX_EVENT_BYTES, AnswerReader, CallFailed, EventStream
from support.sse_server import event, piece, usage

ANSWER = (
    piece("a") + b": still here\r\n\r\n" + piece("é\U0001f600") + piece("", "stop") + usage(7, 2) + b"data: [DONE]\n\n"
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in pairwise(ends)]


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n")), max_size=5),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    places=st.lists(st.integers(0, 10_000), max_size=10),
)
def test_events_are_the_same_wherever_they_are_cut(texts: list[str], end: bytes, places: list[int]) -> None:
    data = b"".join(b"event: x" + end + b"data: " + text.encode() + end + end for text in texts) + b":" + end
    stream = EventStream()
    assert [one.decode() for part in cut(data, places) for one in stream.feed(part)] == texts


@given(places=st.lists(st.integers(0, 10_000), max_size=10))
def test_an_answer_is_read_whole(places: list[int]) -> None:
    reader = AnswerReader()
    for number, part in enumerate(cut(ANSWER, places)):
        reader.feed(part, float(number))
    reader.end()
    assert len(reader.moments) == 2
    assert reader.moments == sorted(reader.moments)
    assert (reader.prompt_tokens, reader.completion_tokens) == (7, 2)


@given(data=st.binary(max_size=200), places=st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_end_in_an_answer_or_a_failure_with_a_name(data: bytes, places: list[int]) -> None:
    failure = fault(cut(b"data: " + data + b"\n\n", places))
    assert failure is None or failure.code in ("bad_stream", "cut", "stream_error")
    assert failure is None or "\n" not in failure.detail


def fault(parts: list[bytes]) -> CallFailed | None:
    reader = AnswerReader()
    try:
        for part in parts:
            reader.feed(part, 0.0)
        reader.end()
    except CallFailed as failure:
        return failure
    return None


def test_chunks_are_counted_where_the_endpoint_counts_no_tokens() -> None:
    reader = AnswerReader()
    reader.feed(piece("a") + piece("") + piece("b") + b"data: [DONE]\n\n", 1.0)
    assert reader.completion_tokens == 2


@pytest.mark.parametrize(
    "choice",
    [{"text": "a"}, {"delta": {"reasoning_content": "a"}}, {"delta": {"reasoning": "a"}}, {"delta": {"content": "a"}}],
)
def test_text_is_text_wherever_it_stands(choice: dict[str, object]) -> None:
    reader = AnswerReader()
    reader.feed(event({"choices": [choice]}), 1.0)
    assert reader.moments == [1.0]


FAULTS = {
    "no JSON": (b"data: {nope\n\n", "bad_stream", "no JSON"),
    "no UTF-8": (b"data: \xff\xfe\n\n", "bad_stream", "no JSON"),
    "a list": (b"data: []\n\n", "bad_stream", "no JSON object"),
    "no chunk": (event({"hello": 1}), "bad_stream", "no chunk"),
    "a choice of text": (event({"choices": ["x"]}), "bad_stream", "choice"),
    "too deep": (b"data: " + b"[" * 100_000 + b"\n\n", "bad_stream", "no JSON"),
    "an error": (event({"error": {"message": "lost", "code": "cut_off"}}), "cut_off", "lost"),
    "an error of type": (event({"error": {"message": "lost", "type": "server_error"}}), "server_error", "lost"),
    "an error in a word": (event({"error": "lost"}), "stream_error", "lost"),
    "without end": (b"data: " + b"x" * MAX_EVENT_BYTES + b"y", "bad_stream", "larger than 4 MiB"),
    "cut": (piece("a"), "cut", "ended before"),
    "half an event": (json.dumps({"choices": []}).encode(), "cut", "ended before"),
}


@pytest.mark.parametrize(("data", "code", "detail"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_have_names(data: bytes, code: str, detail: str) -> None:
    failure = fault([data])
    assert failure is not None
    assert failure.code == code
    assert detail in failure.detail
