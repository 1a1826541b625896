"""Profiles measured layer by layer, and profiles that were stopped and went on, equal those of one pass in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.family_rows import ROWS
from support.profiles import write_examples
from support.quantised import fp8_checkpoint, mxfp4_checkpoint
from support.tiny import prune, tiny_checkpoint

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted, InvalidInput
from premoe_runtime.offline.calibration import Example, read_calibration
from premoe_runtime.offline.profile import samples
from premoe_runtime.offline.profile.criteria.gradients import IMPACT
from premoe_runtime.offline.profile.measure import load_blocks, load_full_model, measure_profile
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.offline.profile.scores import ROUTER_ONLY, SCORES, USUAL
from premoe_runtime.offline.profile.spool import Spool, open_spool
from premoe_runtime.offline.profile.unfinished import Stopped, Unfinished
from premoe_runtime.packs.reader import PackReader, open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import Store, open_store


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Bench:
    """A packed model, calibration data and the places that a measurement uses."""

    folder: Path
    reader: PackReader
    examples: list[Example]
    said: list[str]

    @property
    def store(self) -> Store:
        return open_store((self.folder / "store").as_uri())

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def unfinished(self, task: str = "capitals") -> Unfinished:
        return Unfinished(self.store, self.reader.manifest().weights_id, task, self.said.append)

    def measure(self, model: SlotModel, *, keep: Unfinished | None = None, **settings: Any) -> Profile:
        return measure_profile(
            model,
            self.examples,
            **{"task": "capitals", "max_tokens": 128, "unfinished": keep, "spool": self.spool, **settings},
        )


def bench_of(folder: Path, checkpoint: Path, count: int = 8) -> Bench:
    reader = open_pack(write_pack(open_source(str(checkpoint)), open_store((folder / "packs").as_uri())).url)
    examples = read_calibration(write_examples(folder / "capitals.jsonl", "capitals", count))
    return Bench(folder, reader, examples, [])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("stream")
    return bench_of(folder, tiny_checkpoint(folder))


@pytest.fixture
def bench(packed: Bench, tmp_path: Path) -> Bench:
    return Bench(tmp_path, packed.reader, packed.examples, [])


@pytest.fixture(scope="module")
def whole(packed: Bench) -> SlotModel:
    return load_full_model(packed.reader)


WAYS: dict[str, Callable[[PackReader], SlotModel]] = {"in memory": load_full_model, "layer by layer": load_blocks}
each_way = pytest.mark.parametrize("load", WAYS.values(), ids=WAYS)


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    **{name: partial(tiny_checkpoint, family=row.family, **row.overrides) for name, row in ROWS.items()},
    "deepseek_v3 fp8": partial(
        fp8_checkpoint, family="deepseek_v3", hidden_size=256, moe_intermediate_size=128, intermediate_size=256
    ),
    "gpt_oss mxfp4": partial(mxfp4_checkpoint, hidden_size=64, intermediate_size=64),
}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_layer_by_layer_gives_the_same_bytes(tmp_path: Path, checkpoint: Callable[[Path], Path]) -> None:
    bench = bench_of(tmp_path, checkpoint(tmp_path))
    expected = bench.measure(load_full_model(bench.reader))
    blocks = load_blocks(bench.reader)
    assert bench.measure(blocks).to_bytes() == expected.to_bytes()
    assert IMPACT in expected.state
    assert not (bench.spool / f"{expected.weights_id[:16]}-capitals").exists()
    assert len({layer for layer, _ in blocks.store.resident()}) < blocks.manifest.num_layers


@pytest.mark.parametrize(
    "settings", [{"scores": tuple(SCORES)}, {"scores": ROUTER_ONLY}, {"answers": "none"}, {"layers": (0, 1)}]
)
def test_other_settings_give_the_same_bytes(bench: Bench, whole: SlotModel, settings: dict[str, Any]) -> None:
    assert (
        bench.measure(load_blocks(bench.reader), **settings).to_bytes() == bench.measure(whole, **settings).to_bytes()
    )


def test_layers_of_different_widths_and_bfloat16(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, prune(tiny_checkpoint(tmp_path, dtype=torch.bfloat16), (9, 16)))
    expected = bench.measure(load_full_model(bench.reader, dtype="bfloat16"))
    assert bench.measure(load_blocks(bench.reader, dtype="bfloat16")).to_bytes() == expected.to_bytes()
    assert bench.measure(load_blocks(bench.reader)).to_bytes() != expected.to_bytes()


def test_one_block_at_a_time_has_weights_and_bytes_are_read_twice(bench: Bench) -> None:
    manifest = bench.reader.manifest()
    blocks = load_blocks(bench.reader)
    layers = blocks.model.get_decoder().layers

    def with_weights() -> list[int]:
        return [n for n, layer in enumerate(layers) if not any(one.is_meta for one in layer.parameters())]

    assert with_weights() == []
    for block in (1, 0):
        blocks.load(block)
        assert with_weights() == [block]
    assert blocks.store.arenas[0].data.data_ptr() == blocks.store.arenas[1].data.data_ptr()
    before = bench.reader.store.bytes_read
    bench.measure(load_blocks(bench.reader))
    read = bench.reader.store.bytes_read - before
    # The last layer stays for its way back; the skeleton is checked as a whole before.
    assert read <= manifest.experts_bytes * 3 // 2 + 3 * manifest.skeleton_bytes
    with pytest.raises(InvalidInput, match="writes no answers of its own"):
        bench.measure(blocks, answers="own")


def crashed(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, fatal: int, attempt: Callable[[], object]
) -> bool:
    """Whether ``attempt`` came to the call number ``fatal`` of ``method``, behind whose work it crashed."""
    original, calls = getattr(owner, method), 0

    def counted(*arguments: object) -> None:
        nonlocal calls
        original(*arguments)
        calls += 1
        if calls == fatal:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, counted)
        try:
            attempt()
        except Crash:
            return True
    return False


@each_way
@pytest.mark.parametrize("scores", [USUAL, tuple(SCORES)], ids=("usual scores", "every score"))
@pytest.mark.parametrize(
    ("owner", "method"), [(Unfinished, "save"), (Spool, "write"), (Spool, "drop")], ids=("state", "spool", "removal")
)
def test_a_crash_at_any_write_loses_and_changes_nothing(
    bench: Bench,
    whole: SlotModel,
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[[PackReader], SlotModel],
    owner: type,
    method: str,
    scores: tuple[str, ...],
) -> None:
    expected, model = bench.measure(whole, scores=scores).to_bytes(), load(bench.reader)

    def attempt() -> Profile:
        return bench.measure(model, keep=bench.unfinished(), scores=scores)

    fatal = 1
    while crashed(monkeypatch, owner, method, fatal, attempt):
        assert attempt().to_bytes() == expected
        bench.unfinished().clear()
        assert not any(file.is_file() for file in bench.spool.rglob("*"))
        fatal += 1
    assert fatal > 2 or (load is load_full_model and owner is Spool)
    assert all("the profile that was stopped goes on behind step " in text for text in bench.said)


@each_way
def test_finished_steps_are_not_run_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, load: Callable[[PackReader], SlotModel]
) -> None:
    model, told, fatal, count = load(bench.reader), list[float](), 1, len(bench.examples)
    steps: list[float] = []

    def attempt() -> None:
        bench.measure(model, keep=bench.unfinished(), advance=told.append)

    while crashed(monkeypatch, Unfinished, "save", fatal, attempt):
        before = sum(told)
        told.clear()
        attempt()
        assert sum(told) == pytest.approx(count)
        steps.append(told[0])
        assert before <= told[0] < count + 1e-6  # a step counts as soon as it is kept
        told.clear()
        bench.unfinished().clear()
        fatal += 1
    assert steps == sorted(set(steps))
    # Until it is cleared, a finished measurement is known as such, and no layer runs.
    model.record = None  # type: ignore[assignment,method-assign]
    attempt()


def test_own_answers_are_kept_batch_by_batch(bench: Bench, whole: SlotModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "OWN_TOKENS", 8)
    settings: dict[str, Any] = {"answers": "own", "max_tokens": 80}
    expected = bench.measure(whole, **settings).to_bytes()
    for fatal in (1, 2):
        assert crashed(
            monkeypatch,
            Unfinished,
            "save",
            fatal,
            lambda: bench.measure(whole, keep=bench.unfinished(), **settings),
        )
    written: list[int] = []
    original = samples._written

    def counted(model: SlotModel, prompts: Sequence[tuple[int, ...]], room: int) -> list[tuple[int, ...]]:
        written.append(len(prompts))
        return original(model, prompts, room)

    monkeypatch.setattr(samples, "_written", counted)
    assert bench.measure(whole, keep=bench.unfinished(), **settings).to_bytes() == expected
    assert sum(written) < len(bench.examples)


def stop(bench: Bench, monkeypatch: pytest.MonkeyPatch, model: SlotModel) -> None:
    assert crashed(monkeypatch, Unfinished, "save", 1, lambda: bench.measure(model, keep=bench.unfinished()))


@each_way
def test_other_settings_and_damage_start_anew_and_say_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, load: Callable[[PackReader], SlotModel]
) -> None:
    model = load(bench.reader)
    expected = bench.measure(model, scores=ROUTER_ONLY).to_bytes()
    stop(bench, monkeypatch, model)
    assert bench.measure(model, keep=bench.unfinished(), scores=ROUTER_ONLY).to_bytes() == expected
    assert [text.rpartition(": ")[2] for text in bench.said] == [
        "an unfinished profile of this task was measured with other data or settings; it starts anew"
    ]
    [kept] = bench.store.list("unfinished")
    data = bench.store.get(kept.path)
    for damaged in (b"", data[:100], data[:-1] + bytes([data[-1] ^ 1])):
        bench.said.clear()
        bench.store.put(kept.path, damaged)
        assert bench.measure(model, keep=bench.unfinished(), scores=ROUTER_ONLY).to_bytes() == expected
        assert [text.rpartition(": ")[2] for text in bench.said] == ["an unfinished profile is damaged; it starts anew"]


def test_a_spool_that_is_gone_or_damaged(bench: Bench, whole: SlotModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = load_blocks(bench.reader), bench.measure(whole).to_bytes()
    folder = bench.spool / f"{bench.reader.manifest().weights_id[:16]}-capitals"
    stop(bench, monkeypatch, model)
    min(folder.glob("input-*")).unlink()
    assert bench.measure(model, keep=bench.unfinished()).to_bytes() == expected
    assert bench.said[1:] == [f"{folder} lacks what a stopped run left there; it starts anew"]
    bench.unfinished().clear()
    for damage in (b"", b"x" * 40):
        stop(bench, monkeypatch, model)
        min(folder.glob("input-*")).write_bytes(damage)
        with pytest.raises(CorruptData, match=f"damaged; remove {folder} and start again"):
            bench.measure(model, keep=bench.unfinished())
        bench.unfinished().clear()


def test_a_spool_is_bounded_bound_to_its_settings_and_for_one_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    original = Spool.write

    def watched(self: Spool, *arguments: object) -> None:
        nonlocal most
        original(self, *arguments)  # type: ignore[arg-type]
        most = max(most, sum(file.stat().st_size for file in self.folder.iterdir()))

    monkeypatch.setattr(Spool, "write", watched)
    asked: list[int] = []
    opened = open_spool

    def noted(folder: Path, settings: str, room_bytes: int) -> object:
        asked.append(room_bytes)
        return opened(folder, settings, room_bytes)

    monkeypatch.setattr("premoe_runtime.offline.profile.orders.open_spool", noted)
    for scores in (USUAL, ROUTER_ONLY):
        most = 0
        bench.measure(load_blocks(bench.reader), scores=scores)
        assert most <= asked[-1] + 20_000  # headers, digests, marks
    folder = bench.folder / "one"
    with open_spool(folder, "a", 1) as spool:
        spool.write("input-1-0", torch.ones(3))
        with pytest.raises(Conflict, match="another process measures this"), open_spool(folder, "a", 1):
            pass
    with open_spool(folder, "a", 1) as spool:
        assert spool.read("input-1-0").tolist() == [1, 1, 1]
    with open_spool(folder, "b", 1) as spool:
        assert not spool.has("input-1-0")
    with pytest.raises(Exhausted, match=r"MiB of disk, and .* MiB are free"), open_spool(folder, "b", 1 << 60):
        pass
    (bench.folder / "file").write_text("")
    with pytest.raises(InvalidInput, match="give another --spool"), open_spool(bench.folder / "file" / "x", "b", 1):
        pass


def test_nothing_to_resume_is_a_start(bench: Bench) -> None:
    assert bench.unfinished().load("x") == Stopped()
