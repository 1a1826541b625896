"""`premoe patterns shadow`: what it says of what retrieval recorded, without a retrieval service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe.patterns.v1 import patterns_pb2 as pb
from premoe_local import retrieval_client
from premoe_local.cli import command as premoe
from support.stored_patterns import FAR, StoredSet, store_set

from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import recognise
from premoe_runtime.offline.patterns.library import put_set
from premoe_runtime.storage import open_store

DECISIONS = {"specialist": pb.DECISION_SPECIALIST, "generalist": pb.DECISION_GENERALIST}


class Recorded:
    """Stands for retrieval services by their addresses."""

    def __init__(self) -> None:
        self.signatures_at: dict[str, tuple[list[pb.RecordedSignature], int]] = {}

    @contextmanager
    def at(self, address: str, tls: object) -> Iterator[Recorded]:
        self.address = address
        yield self

    def signatures(self, weights_id: str) -> tuple[list[pb.RecordedSignature], int]:
        return self.signatures_at[self.address]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    made = Recorded()
    monkeypatch.setattr(retrieval_client, "retrieval", made.at)
    return made


def signatures(stored: StoredSet, *tasks: str) -> list[pb.RecordedSignature]:
    """What the set decided on a signature of each task; "" is far from all."""
    found = []
    for number, task in enumerate(tasks, start=1):
        vector = stored.near(task) if task else FAR
        decision = recognise(stored.pattern_set, vector)
        found.append(
            pb.RecordedSignature(
                number=number,
                unix_ms=number * 60_000,
                set_id=stored.set_id,
                signature=vector.tolist(),
                decision=DECISIONS[decision.kind],
                task=decision.task,
                score=decision.score,
            )
        )
    return found


def run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, ["patterns", "shadow", *(str(argument) for argument in arguments)])


def test_changes_are_counted_over_all_replicas_and_shown(tmp_path: Path, recorded: Recorded) -> None:
    url = f"file://{tmp_path}"
    store = open_store(url)
    stored = store_set(store)
    document = stored.pattern_set.document
    members = [
        member.model_copy(update={"cutoff": 2.0}) if member.task == "spelling" else member
        for member in document.members
    ]
    candidate = put_set(
        store, PatternSet.make(document.model_copy(update={"members": tuple(members)}), stored.pattern_set.exemplars)
    )
    recorded.signatures_at = {
        "one": (signatures(stored, "sorting", "spelling", ""), 100),
        "two": (signatures(stored, "counting", "spelling"), 100),
    }
    result = run(url, candidate[:16], "--retrieval", "one", "--retrieval", "two", "--examples", "1", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["signatures"], told["same"], told["no_longer_recognised"]) == (5, 3, 2)
    assert told["decided_by"] == {stored.set_id: 5}
    assert [one["task"] for one in told["tasks"]] == ["counting", "sorting", "spelling", None]
    (change,) = told["changes"]
    assert (change["from"], change["to"], change["signatures"]) == ("spelling", None, 2)
    (example,) = change["examples"]
    assert (example["at"], example["nearest_now"], example["cutoff_now"]) == ("1970-01-01 00:02 UTC", "spelling", 2.0)
    shown = run(url, candidate, "--retrieval", "one", "--retrieval", "two").stdout
    assert "3 of 5 decided alike (60.0%)" in shown
    assert "Changes, with the latest of each" in shown
    alike = run(url, stored.set_id, "--retrieval", "one").stdout
    assert "3 of 3 decided alike (100.0%)" in alike
    assert "Changes" not in alike


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, recorded: Recorded) -> None:
    url = f"file://{tmp_path}"
    store = open_store(url)
    stored = store_set(store)
    spec = stored.pattern_set.document.signature.model_copy(update={"layers": (0, 1)})
    other = put_set(
        store,
        PatternSet.make(
            stored.pattern_set.document.model_copy(update={"signature": spec}), stored.pattern_set.exemplars
        ),
    )
    recorded.signatures_at = {"off": ([], 0), "idle": ([], 5), "busy": (signatures(stored, "sorting"), 5)}
    refusals = [
        (["off"], stored.set_id, 3, "retrieval off records none, start it with --record-signatures"),
        (["idle"], stored.set_id, 3, "no request came in since it started"),
        (["busy"], other, 2, "takes other signatures than set"),
        (["busy"], "zzzz", 3, "no set 'zzzz'"),
        ([], stored.set_id, 2, "Missing option '--retrieval'"),
    ]
    for addresses, set_id, code, says in refusals:
        options = [part for address in addresses for part in ("--retrieval", address)]
        result = run(url, set_id, *options)
        assert (result.exit_code, says in result.stderr) == (code, True), result.output
        assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)
