"""Credentials are found where every other S3 tool finds them, or the line says why they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.storage import open_store
from premoe_runtime.storage.aws_profile import profile_options

CREDENTIALS = """
[default]
aws_access_key_id = AKIADEFAULT
aws_secret_access_key = of/default

# a comment
[lab]
aws_access_key_id=AKIALAB
aws_secret_access_key=of/lab=+
aws_session_token = token
"""
CONFIG = """
[default]
region = eu-west-1

[profile lab]
region = us-east-2
endpoint_url = https://lab.example
s3 =
  addressing_style = path
[profile people]
sso_session = corp
region = us-east-1
[sso-session corp]
sso_region = us-east-1
[profile bare]
region = us-east-1
"""
DEFAULT = {"access_key_id": "AKIADEFAULT", "secret_access_key": "of/default"}
LAB = {"access_key_id": "AKIALAB", "secret_access_key": "of/lab=+", "session_token": "token"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(CREDENTIALS)
    (tmp_path / ".aws/config").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {**DEFAULT, "region": "eu-west-1"}),
        ({"AWS_PROFILE": "lab"}, {**LAB, "region": "us-east-2", "endpoint": "https://lab.example"}),
        ({"AWS_DEFAULT_PROFILE": "lab", "AWS_REGION": "x"}, {**LAB, "endpoint": "https://lab.example"}),
        ({"AWS_PROFILE": "lab", "AWS_ENDPOINT_URL": "http://here"}, {**LAB, "region": "us-east-2"}),
        ({"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B"}, {"region": "eu-west-1"}),
        ({"AWS_PROFILE": "bare", "AWS_ACCESS_KEY_ID": "A"}, {"region": "us-east-1"}),
    ],
)
def test_the_profile_fills_in_what_no_variable_gives(
    home: Path, variables: dict[str, str], expected: dict[str, str]
) -> None:
    assert profile_options({"HOME": str(home), **variables}) == expected


def test_files_may_lie_elsewhere_and_may_be_absent(home: Path, tmp_path: Path) -> None:
    (home / ".aws/credentials").rename(tmp_path / "keys")
    moved = {"HOME": str(home / "nobody"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "keys")}
    assert profile_options(moved) == DEFAULT
    assert profile_options({"HOME": str(home / "nobody")}) == {}


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ("unknown", "AWS_PROFILE 'unknown' is in neither of "),
        ("people", "gets its keys by sso_session.*export-credentials --profile people"),
        ("bare", "AWS_PROFILE 'bare' has no keys in "),
    ],
)
def test_a_profile_that_gives_no_keys_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, profile: str, says: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(InvalidInput, match=says) as error:
        open_store("s3://bucket/packs")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"aws_secret_access_key = hidden\n", b"[lab\nhidden", b"\xff\xfehidden"])
def test_a_broken_file_is_named_and_not_quoted(home: Path, content: bytes) -> None:
    (home / ".aws/credentials").write_bytes(content)
    with pytest.raises(InvalidInput, match="credentials cannot be read") as error:
        profile_options({"HOME": str(home)})
    assert "hidden" not in str(error.value)
