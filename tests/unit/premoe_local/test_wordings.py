"""Requests in other wordings: the same everywhere, kinds apart, answers as they were."""

import hashlib
import re
import subprocess
import sys
from collections import defaultdict

import pytest
from premoe_local.tasks import EXACT, NEVER_TRAINED, OPEN, STORED, TRAINED, UNKNOWN, examples
from premoe_local.tasks.velish import FACTS
from premoe_local.tasks.wordings import KINDS, PLAIN, STRANGERS, Role, Talk, applies, kinds, strangers, talks

ROLES: tuple[Role, ...] = ("train", "validation", "held-out")
NOT_LETTERS = re.compile("[^a-zA-Z]+")
COUNTRIES: dict[str, set[str]] = defaultdict(set)
for (country, _), value in FACTS.items():
    COUNTRIES[country].add(value)
HELD_OUT = [*kinds("validation"), *kinds("held-out")]
DIGEST = """
import hashlib
from premoe_local.tasks import EXACT
from premoe_local.tasks.wordings import KINDS, STRANGERS, applies, talks
rows = [repr(talks(t, k, 3, seed=5, split="test")) for k in KINDS for t in (*EXACT, *STRANGERS) if applies(t, k)]
print(hashlib.sha256("".join(rows).encode()).hexdigest())
"""


def said(talk: Talk) -> str:
    return "\n".join(turn.content for turn in talk.turns)


def test_every_family_of_kinds_has_all_three_roles() -> None:
    families = {kind.family for kind in KINDS.values()}
    assert families == {"casing", "follow", "frame", "language", "reworded", "system", "turns"}
    for family in families:
        assert all(kinds(role, family) for role in ROLES)
    assert sorted(KINDS) == sorted(name for role in ROLES for name in kinds(role))


def test_every_role_has_strangers_beside_stored_tasks_and_far_from_all() -> None:
    for role in ROLES:
        near = {STRANGERS[name].near for name in strangers(role)}
        assert near >= {"py", "prose", ""}
        assert near <= {*STORED, ""}
    assert not STRANGERS.keys() & {*TRAINED, *NEVER_TRAINED}


def test_talks_do_not_depend_on_the_process_or_its_hash_seed() -> None:
    environment = {"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True)
    rows = [
        repr(talks(task, kind, 3, seed=5, split="test"))
        for kind in KINDS
        for task in (*EXACT, *STRANGERS)
        if applies(task, kind)
    ]
    assert done.stdout.strip() == hashlib.sha256("".join(rows).encode()).hexdigest()


@pytest.mark.parametrize("kind", [PLAIN, *KINDS])
def test_a_talk_ends_with_a_request_of_its_task(kind: str) -> None:
    for task in (*STORED, *UNKNOWN, *STRANGERS):
        if not applies(task, kind):
            with pytest.raises(ValueError, match=f"no {kind} wording of {task}"):
                talks(task, kind, 1)
            continue
        for talk in talks(task, kind, 4, split="test"):
            assert (talk.task, talk.kind) == (task, kind)
            assert (talk.turns[-1].role, talk.turns[-1].task) == ("user", task)
            assert bool(talk.answer) == (task in (*TRAINED, "c_header"))
            assert not any("{" + name in said(talk) for name in ("a}", "b}", "x}", "r}", "n}", "q}", "s}"))


@pytest.mark.parametrize("task", EXACT)
def test_kinds_apply_to_every_stored_task_and_keep_its_answers(task: str) -> None:
    for kind in KINDS:
        assert applies(task, kind)
        for talk in talks(task, kind, 5, split="test"):
            if task == "kb":
                country = next(word for word in NOT_LETTERS.split(talk.turns[-1].content) if word.lower() in COUNTRIES)
                assert talk.answer in COUNTRIES[country.lower()]
            elif task == "add":
                a, b = (int(word) for word in re.findall(r"\d{3}", talk.turns[-1].content))
                assert talk.answer.endswith(f" ={a + b}")
            elif task == "json":
                assert talk.answer in talk.turns[-1].content
            elif task == "rev":
                assert talk.answer[::-1] in talk.turns[-1].content


def test_payloads_come_from_the_split_of_the_kinds_role() -> None:
    training = {example.answer for example in examples("roman", "train", 3000)}
    for kind in HELD_OUT:
        assert not training & {talk.answer for talk in talks("roman", kind, 20)}
    assert not training & {talk.answer for talk in talks("roman", kinds("train")[0], 20, split="test")}


def test_no_wording_is_of_two_kinds_that_differ_in_role() -> None:
    for family in ("frame", "system"):
        texts = {
            role: {said(talk) for kind in kinds(role, family) for talk in talks("kb", kind, 40, split="test")}
            for role in ROLES
        }
        assert not texts["train"] & (texts["validation"] | texts["held-out"])
        assert not texts["validation"] & texts["held-out"]


def test_a_casing_leaves_the_payload_as_it_is() -> None:
    for talk in talks("json", "casing.upper", 10, split="test"):
        assert '{"' in talk.turns[-1].content
        assert any(word.isupper() for word in talk.turns[-1].content.split())
        assert f'"{talk.answer}"' in talk.turns[-1].content or talk.answer.isdigit()
    assert all(talk.turns[-1].content.islower() for talk in talks("kb", "casing.lower", 10, split="test"))
    assert not any("?" in talk.turns[-1].content for talk in talks("kb", "casing.bare", 10, split="test"))


def test_conversations_have_the_turns_that_their_kind_says() -> None:
    roles = {"same": "uau", "other": "uau", "two-others": "uauau", "greeting": "uau", "unknown": "uau"}
    for name, wanted in roles.items():
        for talk in talks("add", f"turns.{name}", 5, split="test"):
            assert "".join(turn.role[0] for turn in talk.turns) == wanted
            earlier = {turn.task for turn in talk.turns[:-1]}
            assert (earlier == {"add"}) == (name == "same")
            assert name in ("same", "greeting") or "add" not in earlier
    for kind in kinds(family="follow"):
        assert {turn.task for turn in talks("kb", kind, 1, split="test")[0].turns} == {"kb"}
    for kind in kinds(family="system"):
        assert [turn.role for turn in talks("py", kind, 1, split="test")[0].turns] == ["system", "user"]


@pytest.mark.parametrize("task", OPEN)
def test_open_text_never_shows_a_held_out_excerpt_twice_in_a_row(task: str) -> None:
    pool = talks(task, "frame.formal", 60)
    assert len({talk.answer for talk in pool}) == 60
