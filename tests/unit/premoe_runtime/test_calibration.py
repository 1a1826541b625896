import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.offline.calibration import Example, Message, calibration_digest, read_calibration

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
        ('{"prompt": "  ", "answer": "2"}', '"prompt" is empty'),
        ('{"prompt": "a", "answer": ["2"]}', '"answer" is a list'),
        ('{"prompt": "a", "answer": ""}', '"answer" is empty'),
        ('{"prompt": "a", "messages": []}', "has both"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": ["hi"]}', r'"messages\[0\]" is not an object'),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "expected one of system, user"),
        ('{"messages": [{"role": "user"}]}', r'"messages\[0\].content" is missing'),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "no user turn"),
        ('{"prompt": "\\ud800", "answer": "x"}', "half a surrogate pair"),
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
