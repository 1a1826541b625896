"""Methods at equal bytes: what is asked is a value, what was measured is kept, and figures are paired."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pytest
from support.compression import job, tiny_data, tiny_pack

from premoe_runtime.compress.compare import entrants as entries
from premoe_runtime.compress.compare.cells import (
    RECOGNISED,
    RIGHT,
    Comparison,
    Made,
    Measured,
    Refused,
    Row,
    Size,
)
from premoe_runtime.compress.compare.entrants import Entrant, entrants, parse
from premoe_runtime.compress.compare.figures import figures
from premoe_runtime.compress.compare.making import Order, make_apart, make_here
from premoe_runtime.compress.compare.retrieval import Worker
from premoe_runtime.compress.compare.run import Terms, compare
from premoe_runtime.compress.method import Job, Method, Quiet, Report, setting
from premoe_runtime.compress.methods import random, select
from premoe_runtime.compress.result import Compressed
from premoe_runtime.compress.share import Share
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.arrays import existing
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.evaluation.data import TaskData
from premoe_runtime.offline.evaluation.exam import Answers, Examiner
from premoe_runtime.offline.evaluation.outputs import Asked
from premoe_runtime.offline.profile.measure import load_blocks, load_full_model
from premoe_runtime.packs.reader import PackReader

HALF, LITTLE = Share(0.5), Share(0.125)
TASKS = ("capitals", "digits")


@dataclass(frozen=True)
class Knobs:
    """Of every kind that a setting can be."""

    rounds: int = setting(3, "")
    rate: float = setting(0.5, "")
    joined: bool = setting(False, "")
    kind: Literal["cka", "mse"] = setting("cka", "")
    scores: tuple[str, ...] = setting(("impact",), "")
    top: int | None = setting(None, "")


def method(name: str, **changes: Any) -> Method:
    return replace(random.METHOD, name=name, settings=Knobs, **changes)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    several = method("several", needs=("fine-tuned packs",))
    known = (select.METHOD, random.METHOD, method("knobs"), several, method("idle", changes=("nothing",)))
    found = MappingProxyType({one.name: one for one in known})
    monkeypatch.setattr("premoe_runtime.compress.registry.METHODS", found)
    monkeypatch.setattr(entries, "METHODS", found)


@pytest.mark.usefixtures("registry")
def test_a_method_is_named_with_its_settings() -> None:
    found = parse("knobs:rounds=5,rate=0.25,joined=yes,kind=mse,scores=counts,scores=reap,top=4")
    assert found.settings == Knobs(5, 0.25, True, "mse", ("counts", "reap"), 4)
    assert found.name == "knobs:rounds=5,rate=0.25,joined=true,kind=mse,scores=counts+reap,top=4"
    assert parse("knobs").name == parse("knobs:rounds=3").name == "knobs"


@pytest.mark.usefixtures("registry")
def test_everybody_takes_part_but_those_that_cannot() -> None:
    taken, left_out = entrants(())
    assert [one.name for one in taken] == ["random", "select", "knobs"]
    assert [(one.name, one.why) for one in left_out] == [
        ("several", "it takes several packs, not one at a budget"),
        ("idle", "it keeps all bytes"),
    ]
    taken, left_out = entrants(("knobs:kind=mse", "select:score=counts", "knobs"))
    assert [one.name for one in taken] == ["random", "select", "knobs:kind=mse", "select:score=counts", "knobs"]
    assert not left_out


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("named", "what"),
    [
        (("knob",), "did you mean knobs"),
        (("knobs:round=3",), "knobs has no setting 'round'; did you mean rounds"),
        (("random:seed=3",), "random has no setting 'seed'; it has none"),
        (("knobs:rounds=many",), "setting rounds of knobs is no int: 'many'"),
        (("knobs:joined=perhaps",), "setting joined of knobs is none of true, yes"),
        (("knobs:kind=l2",), "setting kind of knobs is none of cka, mse: 'l2'"),
        (("knobs:kind",), "setting kind of knobs has no value"),
        (("knobs:rounds=1,rounds=2",), "sets rounds twice"),
        (("knobs", "knobs:rounds=3"), "--method names knobs twice"),
    ],
)
def test_what_cannot_be_set_is_said_in_one_line(named: tuple[str, ...], what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        entrants(named)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> PackWeights:
    return tiny_pack(tmp_path_factory.mktemp("compare"))


def test_a_worker_s_slots_are_the_share_with_its_spare_ones(old: PackWeights) -> None:
    manifest = old.manifest  # 16 experts, top-4
    assert [(w.budget.kept, w.spare) for w in (Worker.at(Share(part), manifest) for part in (1, 0.5, 0.3, 0.25))] == [
        (16, 0),
        (6, 2),
        (4, 0),
        (4, 0),
    ]
    with pytest.raises(InvalidInput, match="are 2 slots, but every token uses 4; give a larger share"):
        Worker.at(LITTLE, manifest)


def answers(right: str, kl: float = 0.1) -> Answers:
    hits = np.array([digit == "1" for digit in right])
    ones = np.ones(len(right))
    return Answers(hits, ones, ones.astype(np.int64), kl * ones, ones)


def row(*seeds: str, kl: float = 0.1, memory: int | None = 7) -> list[Measured]:
    made = Made("m", Size(1024, (8, 8), 32), 2.0, memory)
    return [Measured(made, {"add": answers(right, kl), "prose": answers("0" * len(right), kl)}) for right in seeds]


def test_figures_are_means_with_paired_differences(old: PackWeights) -> None:
    rows: dict[tuple[str, Share], Row] = {
        ("random", HALF): row("1000", "0000", kl=0.3),
        ("select", HALF): row("1100", "1110", kl=0.2),
        ("other", HALF): row("1111", "1111", memory=None),
        ("small", HALF): Refused("too small"),
    }
    full = {"add": answers("1111", 0.0), "prose": answers("0000", 0.0)}
    document = figures(Comparison(old.manifest, 2, (HALF,), full, rows, {"other": "a paper"}, ()))
    assert document["counted"] == ["add"]
    rand, chosen, other, small = document["budgets"][0]["entrants"]
    assert (rand["retained"][0], chosen["retained"][0], other["retained"]) == (12.5, 62.5, [100.0, 100.0, 100.0])
    assert (rand["over"]["random"], rand["over"]["select"]["retained"][0]) == (None, -50.0)
    assert (other["over"]["random"]["retained"][0], other["over"]["select"]["kl"][0]) == (87.5, -0.1)
    assert (other["memory"], rand["memory"], other["source"]) == (None, 7, "a paper")
    assert small == {"name": "small", "source": "", "refused": "too small"}
    assert "retained" not in other["tasks"]["prose"]
    low, high = other["over"]["select"]["retained"][1:]
    assert low < 37.5 < high


def test_without_a_peer_s_answers_there_is_no_difference(old: PackWeights) -> None:
    rows: dict[tuple[str, Share], Row] = {("random", HALF): Refused("why"), ("select", HALF): row("10")}
    full = {"add": answers("00", 0.0), "prose": answers("00", 0.0)}
    found = figures(Comparison(old.manifest, 1, (HALF,), full, rows, {}, ()))["budgets"][0]["entrants"][1]
    assert (found["over"], found["retained"]) == ({"random": None, "select": None}, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskData]:
    """Two seeds of 20 prompts, and 6 others that are asked."""
    found = tiny_data(tmp_path_factory.mktemp("data"), TASKS, 46)
    return {task: TaskData((tuple(each[:20]), tuple(each[20:40])), tuple(each[40:])) for task, each in found.items()}


Maker = Callable[[Order, Report], Made | Refused]


def terms(shares: tuple[Share, ...] = (HALF, LITTLE), make: Maker = make_here, **rest: Any) -> Terms:
    def load(reader: PackReader) -> SlotModel:
        return load_full_model(reader, threads=1)

    given = {"entrants": entrants(("select:score=counts",))[0], "load": load, **rest}
    return Terms(shares=shares, head=partial(load_blocks, threads=1), make=make, threads=1, **given)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def found(old: PackWeights, data: dict[str, TaskData], state: Path) -> Comparison:
    stages = list[float]()
    found = compare(old.reader, data, terms(), state=state, stage=lambda what, share: stages.append(share))
    assert stages == sorted(stages)
    assert stages[-1] <= 1
    return found


def test_every_cell_is_measured_or_says_why_not(found: Comparison, state: Path) -> None:
    methods = ("random", "select", "select:score=counts")
    assert list(found.rows) == [
        *((name, share) for share in (HALF, LITTLE) for name in (RIGHT, RECOGNISED)),
        *((name, share) for share in (HALF, LITTLE) for name in methods),
    ]
    whole = Size.of(found.manifest).num_bytes
    for name in (RIGHT, RECOGNISED, *methods):
        measured, refused = found.rows[name, HALF], found.rows[name, LITTLE]
        assert isinstance(refused, Refused)
        assert "give a larger" in refused.why
        assert not isinstance(measured, Refused)
        assert [one.made.size.num_bytes for one in measured] == [whole // 2] * 2
        assert all(one.answers.keys() == set(TASKS) for one in measured)
    assert not (state / "packs").exists()


def test_kl_to_another_model_is_that_of_the_same_experts_under_a_mask(
    found: Comparison, old: PackWeights, data: dict[str, TaskData], tmp_path: Path
) -> None:
    model = load_full_model(old.reader, threads=1)
    examiner = Examiner(model, {task: one.test for task, one in data.items()})
    texts = {task: one.calibration[1] for task, one in data.items()}
    values = select.pooled(job(select.METHOD, old, tmp_path, data=texts), "counts")
    kept = np.zeros_like(existing(old.manifest.layer_experts))
    np.put_along_axis(kept, np.argsort(-values, axis=1, kind="stable")[:, :8], True, axis=1)
    row = found.rows["select:score=counts", HALF]
    assert not isinstance(row, Refused)
    for task, masked in zip(TASKS, examiner.answers([Asked(task, kept, 4) for task in TASKS]), strict=True):
        measured = row[1].answers[task]
        np.testing.assert_allclose(measured.kl, masked.kl, rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(measured.nll, masked.nll, rtol=2e-3)
        assert (measured.kl > 0.01).all()


def test_what_was_measured_is_taken_up(
    found: Comparison, old: PackWeights, data: dict[str, TaskData], state: Path
) -> None:
    def unable(order: Order, report: Report) -> Made | Refused:
        raise AssertionError(f"{order.method} was made again")

    again = compare(old.reader, data, terms((HALF,), unable), state=state)
    assert figures(again)["budgets"] == figures(found)["budgets"][:1]


def test_a_stopped_run_goes_on_behind_its_last_cell_and_layer_by_layer_gives_the_same(
    found: Comparison, old: PackWeights, data: dict[str, TaskData], tmp_path: Path
) -> None:
    made = list[tuple[str, int]]()

    def stopping(order: Order, report: Report) -> Made | Refused:
        if len(made) == 3:
            made.clear()
            raise KeyboardInterrupt
        made.append((order.method, order.seed))
        return make_here(order, report)

    asked = terms((HALF,), stopping, load=partial(load_blocks, threads=1), spool=tmp_path / "spool", retrieval=False)
    with pytest.raises(KeyboardInterrupt):
        compare(old.reader, data, asked, state=tmp_path)
    measured = compare(old.reader, data, asked, state=tmp_path)
    assert made == [("select", 1), ("select", 0), ("select", 1)]
    for name in ("random", "select", "select:score=counts"):
        one, other = measured.rows[name, HALF], found.rows[name, HALF]
        assert not isinstance(one, Refused)
        assert not isinstance(other, Refused)
        for left, right in zip(one, other, strict=True):
            assert left.made.model_id == right.made.model_id
            np.testing.assert_allclose(left.answers["digits"].kl, right.answers["digits"].kl, rtol=2e-3, atol=1e-5)


def test_packs_are_kept_where_one_wants_them(old: PackWeights, data: dict[str, TaskData], tmp_path: Path) -> None:
    asked = terms((HALF,), entrants=[Entrant(random.METHOD, random.Settings())], retrieval=False)
    compare(old.reader, data, asked, state=tmp_path / "state")
    kept = replace(asked, keep=tmp_path / "packs")
    found = compare(old.reader, data, kept, state=tmp_path / "state").rows["random", HALF]
    assert not isinstance(found, Refused)
    assert {one.made.model_id for one in found} == {path.name for path in (tmp_path / "packs" / "models").iterdir()}


def test_a_method_that_breaks_or_keeps_too_much_costs_its_own_cell(
    old: PackWeights, data: dict[str, TaskData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(task: object) -> Compressed:
        raise KeyError("oops")

    def greedy(task: Any) -> Compressed:
        return random.compress(replace(task, share=Share(1.0)))

    found = {name: replace(random.METHOD, name=name, compress=does) for name, does in (("b", broken), ("g", greedy))}
    monkeypatch.setattr("premoe_runtime.compress.compare.making.METHODS", {**found, "random": random.METHOD})
    taken = [Entrant(one, random.Settings()) for one in (*found.values(), random.METHOD)]
    rows = compare(old.reader, data, terms((HALF,), entrants=taken, retrieval=False), state=tmp_path).rows
    assert rows["b", HALF] == Refused("KeyError: 'oops' (a fault of the method, not of the data)")
    assert rows["g", HALF] == Refused("it takes 100% of the experts' bytes, more than 50%")
    assert not isinstance(rows["random", HALF], Refused)


def test_a_pack_is_made_in_a_process_of_its_own_whose_death_is_said(
    old: PackWeights, data: dict[str, TaskData], tmp_path: Path
) -> None:
    texts = {task: one.calibration[0] for task, one in data.items()}

    def order(method: Method) -> Order:
        asked = job(method, old, tmp_path / "work", data=texts)
        return Order.of(Entrant(method, asked.settings), asked, str(tmp_path / "out"))

    made, here = make_apart(order(random.METHOD), Quiet()), make_here(order(random.METHOD), Quiet())
    assert isinstance(made, Made)
    assert isinstance(here, Made)
    assert (made.model_id, made.size) == (here.model_id, here.size)
    assert here.memory is None
    assert made.memory is not None
    assert 0 < made.memory < 1 << 30

    class Killing(Quiet):
        def stage(self, what: str, total: float) -> None:
            (child,) = multiprocessing.active_children()
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)

    died = make_apart(order(select.METHOD), Killing())
    assert died == Refused("its process was killed by SIGKILL, as it happens when memory runs out")
    assert not multiprocessing.active_children()


def test_a_comparison_leaves_the_model_s_store_as_it_was(
    old: PackWeights, data: dict[str, TaskData], tmp_path: Path
) -> None:
    root = old.reader.store.local_root
    assert root is not None
    before = sorted(root.rglob("*"))
    entrant = parse("light-peft:score=counts,steps=2,early=1,tokens=64")
    few = {task: one.calibration[0][:4] for task, one in data.items()}
    asked = Job(old, few, HALF, entrant.settings, tmp_path / "work", threads=1)
    made = make_here(Order.of(entrant, asked, str(tmp_path / "packs")), Quiet())
    assert isinstance(made, Made), made
    assert sorted(root.rglob("*")) == before
    assert list((tmp_path / "packs" / "adapters").glob("counts/*/adapter_model.safetensors"))
