"""`premoe gc` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from premoe_local.pruned_models import Needs, parse
from premoe_operator.api.status import PrunedModelStatus, Resolved
from support.blob_pack import BlobPack, write_blob_pack
from support.pruned_models import COMMIT, FULL, MODEL_ID
from support.stored_patterns import StoredSet, store_set

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.live import go_live
from premoe_runtime.formats.pattern_set import set_paths
from premoe_runtime.packs.ensure import _pinned
from premoe_runtime.storage import Store, open_store


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(premoe, ["gc", *(str(argument) for argument in arguments)], input=stdin)


def document(*arguments: object, stdin: str | None = None) -> Any:
    result = run(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def paths(told: Any, key: str = "objects") -> set[str]:
    return {one["path"] for one in told[key]}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


@pytest.fixture
def packs(store: Store) -> list[BlobPack]:
    return [write_blob_pack(store, file_bytes=64, seed=seed) for seed in range(3)]


@pytest.fixture
def served(store: Store, packs: list[BlobPack]) -> StoredSet:
    """The live set of the first pack's weights."""
    weights_id = packs[0].manifest.weights_id
    made = store_set(store, weights_id=weights_id)
    go_live(store.get, store.put, weights_id, made.set_id, 1.0)
    return made


def folder(pack: BlobPack) -> str:
    return f"models/{pack.model_id}"


def pruned(model_id: str, *, pattern_set: str = "", name: str = "chat") -> dict[str, Any]:
    return {
        "kind": "PrunedModel",
        "metadata": {"name": name, "namespace": "team", "uid": "u"},
        "spec": {"model": {"uri": "s3://bucket/model"}, "budget": "1/4", "odd": {"later": 1}},
        "status": {"resolved": {"modelId": f"blake3:{model_id}", "patternSet": pattern_set}, "conditions": []},
    }


def listing(*items: dict[str, Any]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def test_packs_go_with_a_flag_and_what_is_named_stays(
    url: str, store: Store, packs: list[BlobPack], served: StoredSet
) -> None:
    store.put("patterns/orphan.safetensors", b"12345")
    told = document(url, "--days", 0)
    assert (told["deleted"], told["bytes"], paths(told)) == (False, 5, {"patterns/orphan.safetensors"})
    assert {one["because"] for one in told["packs"]} == {"its live pointer", "packs go only with --packs"}
    assert run(url, "--packs").stdout.endswith("0 objects, 0 B; nothing was deleted\n"), "they are too young"
    told = document(url, "--days", 0, "--packs", "--keep", packs[1].model_id[:9])
    assert paths(told) == {"patterns/orphan.safetensors", folder(packs[2])}
    assert {one["path"]: one["because"] for one in told["packs"]} == {
        folder(packs[0]): "its live pointer",
        folder(packs[1]): f"--keep {packs[1].model_id[:9]}",
    }
    text = run(url, "--days", 0, "--packs", "--models", "-", stdin=listing(pruned(packs[2].model_id)))
    assert "PrunedModel team/chat" in text.stdout
    assert "nothing was deleted; --delete does" in text.stdout
    told = document(url, "--days", 0, "--packs", "--keep", f"blake3:{packs[1].model_id}", "--delete")
    assert (told["deleted"], paths(told)) == (True, {"patterns/orphan.safetensors", folder(packs[2])})
    assert set(store.list_names("models")) == {packs[0].model_id, packs[1].model_id}
    assert run(url, "--days", 0, "--delete").stdout.endswith("deleted 0 objects, 0 B\n")


def test_a_set_that_a_pruned_model_names_stays(
    url: str, store: Store, packs: list[BlobPack], served: StoredSet, tmp_path: Path
) -> None:
    other = store_set(store, weights_id=packs[1].manifest.weights_id, seed=5)
    named = tmp_path / "models.json"
    named.write_text(listing(pruned("f" * 64, pattern_set=f"blake3:{other.set_id}")))
    told = document(url, "--days", 0, "--sets", "--packs")
    assert {*set_paths(other.set_id), folder(packs[1]), folder(packs[2])} <= paths(told)
    told = document(url, "--days", 0, "--sets", "--packs", "--models", named)
    assert paths(told) == {folder(packs[2])}


def test_pruned_models_name_packs_in_spec_and_status() -> None:
    one, two = "b" * 64, "c" * 64
    resolved = Resolved(model_id=f"blake3:{one}", pattern_set="blake3:" + "e" * 64)
    status = PrunedModelStatus(resolved=resolved, serving_model_id=f"blake3:{two}").model_dump(by_alias=True)
    item = {"kind": "PrunedModel", "metadata": {"name": "chat", "namespace": "team"}, "spec": FULL, "status": status}
    (found,) = parse(listing(item), "stdin")
    named = frozenset({one, two, MODEL_ID.removeprefix("blake3:")})
    assert found == Needs("PrunedModel team/chat", named, frozenset({"e" * 64}), FULL["model"]["uri"], COMMIT)
    assert parse(json.dumps(item), "stdin") == [found], "kubectl get pmodel NAME -o json"
    del item["status"]
    assert parse(json.dumps(item), "stdin")[0].models == {MODEL_ID.removeprefix("blake3:")}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "document: Invalid JSON"),
        ("[]", "document: "),
        ('{"kind": "List", "items": [{"kind": "Pod"}]}', "a Pod is in it"),
        ('{"kind": "Pod"}', "it is a Pod"),
        ('{"kind": "List", "items": [{"kind": "PrunedModel", "status": {"servingModelId": 3}}]}', "servingModelId"),
        ('{"kind": "List", "items": ' + "[" * 5000, "document: "),
    ],
)
def test_another_file_than_pruned_models_is_one_line(text: str, what: str, url: str, packs: list[BlobPack]) -> None:
    with pytest.raises(InvalidInput, match="kubectl get prunedmodels -A -o json"):
        parse(text, "there")
    result = run(url, "--packs", "--days", 0, "--delete", "--models", "-", stdin=text)
    assert (result.exit_code, result.stderr.count("\n"), what in result.stderr) == (2, 1, True), result.stderr
    assert len(open_store(url).list_names("models")) == 3


def test_the_mark_of_a_commit_says_what_a_pruned_model_will_have(
    url: str, store: Store, packs: list[BlobPack], served: StoredSet
) -> None:
    pinned = _pinned(store, "hf://org/name", COMMIT)
    assert pinned is not None
    pinned.mark(packs[1].manifest)
    item = pruned("")
    item |= {"status": {}, "spec": {"model": {"uri": "hf://org/name", "revision": COMMIT}}}
    told = document(url, "--days", 0, "--packs", "--models", "-", stdin=listing(item))
    assert paths(told) == {folder(packs[2])}


def test_a_pruned_model_without_a_pack_is_said(url: str, packs: list[BlobPack], served: StoredSet) -> None:
    item = pruned("")
    item["status"] = {}
    result = run(url, "--models", "-", stdin=listing(item))
    assert (result.exit_code, "PrunedModel team/chat names no pack yet" in result.stderr) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["--keep", "zz"], 3, "no pack 'zz'"),
        (["--keep", ""], 3, "no pack ''"),
        (["--packs"], 4, "nothing refers to any of the 3 packs"),
        (["--models", "nowhere.json"], 2, "nowhere.json"),
        (["--days", "nan"], 2, "nan"),
    ],
)
def test_bad_input_is_one_line_and_deletes_nothing(
    url: str, packs: list[BlobPack], arguments: list[str], code: int, what: str
) -> None:
    before = {info.path for info in open_store(url).list()}
    result = run(url, "--days", 0, "--delete", *arguments)
    assert (result.exit_code, result.stderr.count("\n"), what in result.stderr) == (code, 1, True), result.stderr
    assert {info.path for info in open_store(url).list()} == before


def test_a_binary_file_is_one_line(url: str, packs: list[BlobPack], tmp_path: Path) -> None:
    (tmp_path / "models.json").write_bytes(b"\xff\xfe")
    result = run(url, "--models", tmp_path / "models.json")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr


def test_a_damaged_set_keeps_everything(url: str, store: Store, packs: list[BlobPack], served: StoredSet) -> None:
    store.put(set_paths(served.set_id)[0], b"{")
    result = run(url, "--days", 0, "--packs", "--delete")
    assert (result.exit_code, result.stderr.count("\n")) == (5, 1)
    assert len(store.list_names("models")) == 3


def test_a_tenant_s_packs_are_swept_by_its_name_and_held_by_patterns_of_all(url: str, store: Store) -> None:
    mine = open_store(f"{url}/tenants/blue")
    used, unused = (write_blob_pack(mine, file_bytes=64, seed=seed) for seed in range(2))
    made = store_set(store, weights_id=used.manifest.weights_id)
    go_live(store.get, store.put, used.manifest.weights_id, made.set_id, 1.0)
    assert paths(document(url, "--days", 0, "--packs", "--sets", "--stale")) == set(), "its sets are not stale"
    told = document(url, "--tenant", "blue", "--days", 0, "--packs", "--delete")
    assert paths(told) == {folder(unused)}
    assert mine.exists(f"{folder(used)}/manifest.json")
    assert run(url, "--tenant", "Blue!").exit_code == 2
    stranger = run(url, "--tenant", "red")
    assert (stranger.exit_code, stranger.stderr) == (3, f"error: {url} has nothing of a tenant red; it has blue\n")


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    result = run(tmp_path / "typo")
    assert (result.exit_code, result.stderr) == (3, f"error: file://{tmp_path}/typo: no such folder\n")
