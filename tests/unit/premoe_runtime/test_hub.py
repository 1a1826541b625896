"""A model hub: commits, access, tokens, rate limits, and what it means when the hub refuses."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path

import pytest
from support.checkpoints import checkpoint
from support.hub import COMMIT, Hub, hub

from premoe_runtime.formats.errors import InvalidInput, NotFound, Unavailable
from premoe_runtime.packs.hub import find_token, wait_seconds
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import LocalStore

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub(checkpoint(tmp_path / "model", shards=2)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr("premoe_runtime.packs.hub.sleep", waited.append)
    return waited


@pytest.mark.parametrize("text", ["hf://org/name", "hf://org/name@main", f"hf://org/name@{COMMIT}"])
def test_a_hub_model_is_pinned_to_its_commit(served: Hub, text: str) -> None:
    source = open_source(text)
    assert (source.url, source.revision) == ("hf://org/name", COMMIT)
    assert "tokenizer.json" in source.skeleton_files


@pytest.mark.slow
def test_packing_from_a_hub_by_ranged_reads(served: Hub, tmp_path: Path) -> None:
    direct = write_pack(open_source(str(served.folder)), LocalStore(tmp_path / "a"))
    result = write_pack(open_source("hf://org/name"), LocalStore(tmp_path / "b"))
    assert result.manifest.model_id == direct.manifest.model_id
    assert (result.manifest.origin.url, result.manifest.origin.revision) == ("hf://org/name", COMMIT)
    shards = [span for path, span in served.requests if path.startswith("/cdn/") and path.endswith(".safetensors")]
    assert shards
    assert all(shards), "a shard was read without a range"
    assert served.tokens == {""}
    count = len(served.requests)
    assert write_pack(open_source("hf://org/name"), LocalStore(tmp_path / "b")).already_packed
    assert len(served.requests) == count + 2  # revision and file list


def test_the_hub_token_is_sent(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    open_source("hf://org/name")
    assert served.tokens == {"Bearer secret-token"}


@pytest.mark.parametrize("text", ["hf://org/unknown", "hf://org/name@other"])
def test_a_hub_model_that_does_not_exist(served: Hub, text: str) -> None:
    with pytest.raises(NotFound, match="no such model or revision at http"):
        open_source(text)


@pytest.mark.parametrize(
    "text", ["hf://", "hf://name", "hf://a/b/c", "hf://a/b@", "hf://a/b@refs//1", "hf://a/b@../../c", "hf://../x@y@z"]
)
def test_bad_hub_addresses(text: str) -> None:
    with pytest.raises(InvalidInput, match="write hf://org/name"):
        open_source(text)


def test_a_hub_that_does_not_answer(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        open_source("hf://org/name")


def test_a_server_that_is_no_hub(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are JSON of another kind."""
    monkeypatch.setattr("support.hub.COMMIT", "not a commit!")
    with pytest.raises(Unavailable, match="not a model hub's answer"):
        open_source("hf://org/name")


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://hub", "http://", "http://:x"])
def test_a_hub_address_that_is_none(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(InvalidInput, match=r"HF_ENDPOINT|http") as error:
        open_source("hf://org/name")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("revision", ["feature/new-router", "refs/pr/12", "refs%2Fpr%2F12", "v1.0+fix"])
def test_a_revision_may_be_a_branch_with_a_slash_or_a_pull_request(served: Hub, revision: str) -> None:
    served.revisions = ("feature/new-router", "refs/pr/12", "v1.0+fix")
    assert open_source(f"hf://org/name@{revision}").revision == COMMIT


def test_a_list_of_files_comes_in_pages_and_with_folders(served: Hub) -> None:
    (served.folder / "additional_chat_templates").mkdir()
    (served.folder / "additional_chat_templates/tool.jinja").write_text("{{ x }}")
    served.page = 2
    source = open_source("hf://org/name")
    assert {"additional_chat_templates/tool.jinja", SHARD, "tokenizer_config.json"} <= {
        one.path for one in source.files
    }
    assert source.store.get("additional_chat_templates/tool.jinja") == b"{{ x }}"


@pytest.mark.parametrize(
    ("status", "headers", "token", "kind", "says"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, "", InvalidInput, "hf://org/name is gated: ask for access at .*HF_TOKEN"),
        (401, {"X-Error-Code": "GatedRepo"}, "", InvalidInput, "is gated"),
        (401, {}, "", NotFound, "no such model .*, or it is private; .*HF_TOKEN"),
        (404, {"X-Error-Code": "RepoNotFound"}, "mine", NotFound, "no such model"),
        (401, {}, "mine", InvalidInput, "refuses the token"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "", NotFound, "has no revision main at http"),
        (
            403,
            {"X-Error-Code": "DisabledRepo", "X-Error-Message": "It broke rules."},
            "",
            InvalidInput,
            "It broke rules",
        ),
    ],
)
@pytest.mark.parametrize("place", ["/revision/", "/tree/", "/resolve/"])
def test_what_a_refusal_means(
    served: Hub,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    status: int,
    headers: dict[str, str],
    token: str,
    kind: type[Exception],
    says: str,
) -> None:
    """Of the API, which we ask ourselves, and of files, where the store's client hides the hub's headers."""
    monkeypatch.setenv("HF_TOKEN", token)
    served.refusals = [(place, status, headers)] * 2
    with pytest.raises(kind, match=says) as error:
        open_source("hf://org/name").store.get("config.json")
    assert "\n" not in str(error.value)
    assert "mine" not in str(error.value)


@pytest.mark.parametrize("place", ["/revision/", "/tree/", "/resolve/"])
def test_a_hub_that_slows_us_down_is_waited_for(served: Hub, pauses: list[float], place: str) -> None:
    limits = [{"Retry-After": "7"}, {"Retry-After": "7"}, {"RateLimit": '"pages";r=0;t=42'}, {"RateLimit": "t=42"}]
    served.refusals = [(place, 429, each) for each in limits]
    source = open_source("hf://org/name")
    room = bytearray(8)
    source.store.read_into(SHARD, 0, [memoryview(room)])
    assert room == (served.folder / SHARD).read_bytes()[:8]
    assert pauses == ([7, 7, 42, 42] if place != "/resolve/" else [7, 42])  # a file's refusal is asked for once more


def test_waiting_has_a_bound(served: Hub, pauses: list[float]) -> None:
    served.refusals = [("/revision/", 429, {"Retry-After": "250"})] * 9
    with pytest.raises(Unavailable, match="answers with status 429"):
        open_source("hf://org/name")
    assert pauses == [250, 250]
    served.refusals = [("/revision/", 503, {"Retry-After": "86400"})]
    with pytest.raises(Unavailable, match="answers with status 503"):
        open_source("hf://org/name")
    assert len(pauses) == 2


def test_without_a_time_it_is_tried_a_few_times(served: Hub, pauses: list[float]) -> None:
    served.refusals = [("/resolve/", 500, {})] * 4
    assert open_source("hf://org/name").store.get("config.json")
    assert pauses == [0.5, 1]
    served.refusals = [("/resolve/", 500, {})] * 99
    with pytest.raises(Unavailable, match="status 500"):
        open_source("hf://org/name").store.get("config.json")


@pytest.mark.parametrize(
    ("header", "value", "seconds"),
    [
        ("Retry-After", "120", 120),
        ("Retry-After", "Sat, 01 Aug 2026 00:00:30 GMT", 30),
        ("Retry-After", "Sat, 01 Aug 2020 00:00:00 GMT", 0),
        ("Retry-After", "soon", None),
        ("RateLimit", '"api";r=0;t=55', 55),
        ("Server", "x", None),
    ],
)
def test_how_long_to_wait(header: str, value: str, seconds: float | None) -> None:
    headers = Message()
    headers[header] = value
    assert wait_seconds(headers, datetime(2026, 8, 1, tzinfo=UTC)) == seconds


def test_the_token_is_found_where_the_hub_tools_keep_it(tmp_path: Path) -> None:
    for place in ("home/.cache/huggingface", "hf", "cache/huggingface"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "token").write_text(f"of {place}\n")
    home = {"HOME": str(tmp_path / "home")}
    assert find_token({}) == ""
    assert find_token(home) == "of home/.cache/huggingface"
    assert find_token({**home, "XDG_CACHE_HOME": str(tmp_path / "cache")}) == "of cache/huggingface"
    assert find_token({**home, "HF_HOME": str(tmp_path / "hf")}) == "of hf"
    assert find_token({**home, "HF_TOKEN_PATH": str(tmp_path / "hf/token")}) == "of hf"
    assert find_token({**home, "HF_TOKEN_PATH": str(tmp_path)}) == ""
    assert find_token({**home, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}) == ""
    assert find_token({**home, "HF_TOKEN": " mine "}) == "mine"
