import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.offline.calibration import Example, Message, PassedOver, calibration_digest, read_calibration

GOOD = '{"prompt": "1+1", "answer": "2"}'


def written(tmp_path: Path, *lines: str | bytes) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def test_reads_prompts_conversations_and_blank_lines(tmp_path: Path) -> None:
    talk = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
        ]
    }
    examples = read_calibration(written(tmp_path, GOOD, "", json.dumps(talk)))
    assert examples == [
        Example((Message("user", "1+1"),), "2", 1),
        Example((Message("system", "Be brief."), Message("user", "Hi")), "Hello", 3),
    ]


def test_skip_and_limit_choose_a_range(tmp_path: Path) -> None:
    path = written(tmp_path, *(json.dumps({"prompt": str(i), "answer": "x"}) for i in range(6)))
    assert [example.messages[0].content for example in read_calibration(path, skip=2, limit=3)] == ["2", "3", "4"]


def test_answers_may_be_missing_when_prompts_alone_are_wanted(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "hi"}')
    assert read_calibration(path, answers="none")[0].answer is None
    with pytest.raises(InvalidInput, match=r"data\.jsonl:1: has no answer"):
        read_calibration(path)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"prompt": "a", ', "broken JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "too large a number"),
        ("[1, 2]", "is not a JSON object"),
        ('"text"', "is not a JSON object"),
        ('{"answer": "2"}', 'has no "prompt" and no "messages"'),
        ('{"prompt": 3, "answer": "2"}', '"prompt" is a int'),
        ('{"prompt": null, "answer": "2"}', '"prompt" is missing'),
        ('{"prompt": "a", "answer": ["2"]}', '"answer" is a list'),
        ('{"prompt": "a", "messages": []}', "has both"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": ["hi"]}', r'"messages\[0\]" is not an object'),
        ('{"messages": [{"role": "user"}]}', r'"messages\[0\].content" is missing'),
        (b'{"prompt": "\xff", "answer": "x"}', "is not UTF-8 at byte 13"),
    ],
)
def test_a_broken_line_is_named_with_file_and_number(tmp_path: Path, line: str | bytes, what: str) -> None:
    path = written(tmp_path, GOOD, "", line, GOOD)
    with pytest.raises(InvalidInput, match=what) as caught:
        read_calibration(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def turns(*roles_and_contents: tuple[str, object], **more: object) -> str:
    messages = [{"role": role, "content": content, **more} for role, content in roles_and_contents]
    return json.dumps({"messages": messages})


UNUSED = [
    ('{"prompt": "  ", "answer": "2"}', "the prompt is empty"),
    ('{"prompt": "a", "answer": ""}', "has no answer"),
    ('{"prompt": "a"}', "has no answer"),
    ('{"prompt": "\\ud800", "answer": "x"}', "half a surrogate pair"),
    (turns(("user", ""), ("assistant", "x")), "the prompt is empty"),
    (turns(("user", "x"), ("assistant", " ")), "has no answer"),
    (turns(("assistant", "x")), "no user turn"),
    (turns(("user", "x"), ("tool", "y"), ("assistant", "z")), "'tool'; requests have system"),
    (turns(("robot", "x")), "'robot'; requests have system"),
    (turns(("user", "x"), ("assistant", "y"), tool_calls=[{}]), "calls tools"),
    (turns(("user", [{"type": "image_url", "image_url": {}}]), ("assistant", "y")), "is no text"),
]


@pytest.mark.parametrize(("line", "reason"), UNUSED)
def test_what_no_request_could_send_is_passed_over_and_counted(tmp_path: Path, line: str, reason: str) -> None:
    path = written(tmp_path, GOOD, line, GOOD)
    unused = PassedOver()
    assert [example.line for example in read_calibration(path, passed_over=unused)] == [1, 3]
    assert unused.places[0].startswith(f"{path}:2: ")
    assert reason in unused.places[0]
    # Several seeds or models that read the same are told the same.
    read_calibration(path, passed_over=unused)
    assert unused.note == f"1 line passed over; the first: {unused.places[0]}"
    with pytest.raises(InvalidInput, match=re.escape(reason)):
        read_calibration(written(tmp_path, line))


def test_turns_are_read_as_requests_are(tmp_path: Path) -> None:
    talk = turns(("developer", ""), ("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]))
    [example] = read_calibration(written(tmp_path, talk), answers="none")
    assert example.messages == (Message("system", ""), Message("user", "ab"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_byte_order_marks_are_skipped(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "data.jsonl"
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path.write_bytes((mark + GOOD.replace("1+1", "né") + "\r\n" + GOOD + "\r\n").encode(encoding))
    assert [example.messages[0].content for example in read_calibration(path)] == ["né", "1+1"]
    joined = written(tmp_path, GOOD, "\ufeff" + GOOD)
    assert len(read_calibration(joined)) == 2
    with pytest.raises(InvalidInput, match="save it as UTF-8"):
        read_calibration(written(tmp_path, b"\xff\xfeab"))


def test_the_limit_does_not_hide_a_broken_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=":2: "):
        read_calibration(written(tmp_path, GOOD, "{"), limit=1)


def test_empty_missing_and_overskipped_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no examples"):
        read_calibration(written(tmp_path, "", " "))
    with pytest.raises(InvalidInput, match="has 1 examples, so skipping 1 leaves none"):
        read_calibration(written(tmp_path, GOOD), skip=1)
    with pytest.raises(NotFound, match="no such calibration file"):
        read_calibration(tmp_path / "absent.jsonl")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_calibration(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with suppress(InvalidInput):
        assert read_calibration(path, answers="none")


def test_the_digest_depends_on_text_not_on_layout(tmp_path: Path) -> None:
    one = read_calibration(written(tmp_path, GOOD, GOOD.replace("1+1", "2+2")))
    same = read_calibration(written(tmp_path, "", '{"answer": "2", "prompt":"1+1"}', GOOD.replace("1+1", "2+2")))
    other = read_calibration(written(tmp_path, GOOD, GOOD.replace("1+1", "2+3")))
    assert calibration_digest(one) == calibration_digest(same) != calibration_digest(other)
