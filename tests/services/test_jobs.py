"""`premoe-job` as Kubernetes runs it: exit codes, last words, ensured results, signals; against a real S3 server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from premoe_worker.jobs import cli
from support.checkpoints import checkpoint, config, tensors, write
from support.hub import COMMIT, hub
from support.processes import environ
from support.profiles import ALPHABETS, write_examples
from support.servers import S3Server, s3_server
from support.tiny import tiny_checkpoint

from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.patterns.library import find_set
from premoe_runtime.offline.profile.room import room
from premoe_runtime.offline.profile.scores import USUAL
from premoe_runtime.offline.sizing.bill import PROCESS_BYTES
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.storage import Store, open_store

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]  # each profile imports torch


@dataclass(frozen=True, slots=True)
class Ended:
    """How a Job's container ended."""

    code: int
    words: dict[str, str]
    output: str


COMMAND = [sys.executable, "-m", cli.__name__]


def job(folder: Path, *arguments: object, index: int | None = None, **variables: str) -> Ended:
    """Run ``premoe-job`` to its end."""
    log = folder / "termination-log"
    extra = {"PREMOE_TERMINATION_LOG": str(log), "OMP_NUM_THREADS": "1", **variables}
    if index is not None:
        extra["JOB_COMPLETION_INDEX"] = str(index)
    ended = subprocess.run(
        [*COMMAND, *(str(argument) for argument in arguments)],
        capture_output=True,
        text=True,
        env=environ(extra),
        timeout=200,
        check=False,
    )
    words = json.loads(log.read_text())
    assert ended.stdout == json.dumps(words) + "\n"
    return Ended(ended.returncode, words, ended.stderr)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run ``premoe-job`` in this process: for what ends before any work."""

    def run(*arguments: object, index: int | None = None) -> Ended:
        log = tmp_path / "termination-log"
        monkeypatch.setenv("PREMOE_TERMINATION_LOG", str(log))
        monkeypatch.setenv("JOB_COMPLETION_INDEX", "" if index is None else str(index))
        words = [str(argument) for argument in arguments]
        code = cli.run(lambda: cli.command.main(args=words, prog_name=cli.PROGRAM, standalone_mode=False))
        written = json.loads(log.read_text())
        out, errors = capsys.readouterr()
        assert out == json.dumps(written) + "\n"
        return Ended(code, written, errors)

    return run


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model", shards=2)


def upload(folder: Path, url: str) -> None:
    store = open_store(url)
    for path in folder.iterdir():
        store.put(path.name, path.read_bytes())


def test_a_checkpoint_in_s3_is_packed_once(s3: S3Server, source: Path, tmp_path: Path) -> None:
    checkpoint_url, store_url = f"{s3.url}/checkpoints/tiny", f"{s3.url}/packs"
    upload(source, checkpoint_url)
    first = job(tmp_path, "pack", checkpoint_url, "--to", store_url)
    assert first.code == 0, first.output
    reader = open_pack(store_url)
    assert first.words == {"modelId": f"blake3:{reader.manifest().model_id}"}
    assert verify_pack(reader).faults == ()
    stamps = {info.path: info.modified for info in open_store(store_url).list()}
    again = job(tmp_path, "pack", checkpoint_url, "--to", store_url, "--expect", first.words["modelId"])
    assert (again.code, again.words) == (0, first.words)
    assert {info.path: info.modified for info in open_store(store_url).list()} == stamps
    # The checkpoint may go: an expected pack that is there is all that counts.
    gone = job(tmp_path, "pack", f"{s3.url}/gone", "--to", store_url, "--expect", first.words["modelId"])
    assert (gone.code, gone.words) == (0, first.words)


def test_a_commit_of_a_hub_and_a_mounted_folder_give_the_same_pack(source: Path, tmp_path: Path) -> None:
    with hub(source) as served:
        options = ("--to", tmp_path / "hub", "--revision", COMMIT)
        pulled = job(tmp_path, "pack", "hf://org/name", *options, HF_ENDPOINT=served.endpoint)
    mounted = job(tmp_path, "pack", source.as_uri(), "--to", tmp_path / "mounted")
    assert (pulled.code, mounted.code) == (0, 0)
    assert open_pack(str(tmp_path / "hub")).manifest().weights_id == (
        open_pack(str(tmp_path / "mounted")).manifest().weights_id
    )
    # The hub is gone, and its commit is still known.
    again = job(tmp_path, "pack", "hf://org/name", *options, HF_ENDPOINT=served.endpoint)
    assert (again.code, again.words) == (0, pulled.words)


def test_two_jobs_pack_one_checkpoint_at_a_time(s3: S3Server, tmp_path: Path) -> None:
    folder = big_checkpoint(tmp_path / "big")
    runs = [
        subprocess.Popen(
            [*COMMAND, "pack", str(folder), "--to", s3.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ({"PREMOE_TERMINATION_LOG": str(tmp_path / f"log-{number}")}),
        )
        for number in range(2)
    ]
    ended = [(run.communicate(timeout=120), run.returncode) for run in runs]
    assert [code for _, code in ended] == [0, 0], ended
    assert ended[0][0][0] == ended[1][0][0]
    assert verify_pack(open_pack(s3.url)).faults == ()


def big_checkpoint(folder: Path) -> Path:
    """Big enough to be caught while it is packed: 3 layers of 12 MB blobs."""
    values = config(hidden_size=512, moe_intermediate_size=2000, num_experts=6, num_hidden_layers=3)
    return write(folder, values, tensors(values, dtype="float32"))


def test_sigterm_stops_a_pack_cleanly_and_the_next_run_goes_on(s3: S3Server, tmp_path: Path) -> None:
    folder, log = big_checkpoint(tmp_path / "big"), tmp_path / "log"
    store = open_store(s3.url)
    command = [*COMMAND, "pack", str(folder), "--to", s3.url]
    run = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ({"PREMOE_TERMINATION_LOG": str(log)}),
    )
    deadline = time.monotonic() + 60
    while not layers_staged(store) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    kept = layers_staged(store)
    assert run.returncode == 128 + signal.SIGTERM, errors
    assert json.loads(log.read_text())["reason"] == "STOPPED"
    *progress, last = errors.splitlines()
    assert last == "error: stopped by a signal; another run goes on"
    assert all(line.startswith("packing ") for line in progress)
    assert kept > 0
    assert store.list("models") == []
    ended = job(tmp_path, "pack", folder, "--to", s3.url)
    assert ended.code == 0
    assert verify_pack(open_pack(s3.url)).faults == ()


def layers_staged(store: Store) -> int:
    return sum("/records/experts/" in info.path for info in store.list("staging"))


BAD_PACKS: dict[str, tuple[str, tuple[str, ...], int, str, str]] = {
    "unknown family": ("family", (), 2, "UNKNOWN_FAMILY", "models of type 'nemotron_h' cannot be packed"),
    "missing checkpoint": ("missing", (), 3, "CHECKPOINT_NOT_FOUND", "no such folder, or an empty one"),
    "another id": ("good", ("--expect", "blake3:" + "0" * 64), 4, "MODEL_ID_MISMATCH", "is expected"),
    "damaged": ("damaged", (), 5, "HEADER_INVALID", "truncated"),
    "revision of a folder": ("good", ("--revision", COMMIT), 2, "REVISION_INVALID", "only hf:// sources"),
}


@pytest.mark.parametrize("case", BAD_PACKS.values(), ids=BAD_PACKS.keys())
def test_bad_sources_are_told_in_the_last_words(
    source: Path, tmp_path: Path, here: Callable[..., Ended], case: tuple[str, tuple[str, ...], int, str, str]
) -> None:
    kind, options, code, reason, message = case
    if kind == "family":
        (source / "config.json").write_text(json.dumps({**config(), "model_type": "nemotron_h"}))
    elif kind == "missing":
        shutil.rmtree(source)
    elif kind == "damaged":
        shard = next(source.glob("*.safetensors"))
        os.truncate(shard, shard.stat().st_size - 8)
    ended = here("pack", source, "--to", tmp_path / "store", *options)
    assert (ended.code, ended.words["reason"]) == (code, reason)
    assert message in ended.words["message"]
    assert ended.output == f"error: {ended.words['message']}\n"
    assert "Traceback" not in ended.output


def test_a_store_that_is_down_is_worth_another_try(s3: S3Server, source: Path, here: Callable[..., Ended]) -> None:
    s3.process.terminate()
    s3.process.wait(10)
    ended = here("pack", source, "--to", s3.url)
    assert (ended.code, ended.words["reason"]) == (6, "STORE_FAILED")


def test_usage_is_bad_input(here: Callable[..., Ended]) -> None:
    ended = here("pack", "somewhere")
    assert (ended.code, ended.words["reason"]) == (2, "USAGE")
    assert "--to" in ended.words["message"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The URL of a store with the pack of a tiny model, and the model's id."""
    folder = tmp_path_factory.mktemp("jobs")
    ended = job(folder, "pack", tiny_checkpoint(folder), "--to", folder / "store")
    assert ended.code == 0, ended.output
    return str(folder / "store"), ended.words["modelId"]


def tasks_file(folder: Path, *names: str, samples: int | None = None) -> Path:
    entries = []
    for name in names:
        entry: dict[str, object] = {"name": name, "data": str(write_examples(folder / f"{name}.jsonl", name, 30))}
        entries.append(entry if samples is None else {**entry, "samples": samples})
    path = folder / "tasks.json"
    path.write_text(json.dumps(entries))
    return path


def test_an_indexed_job_profiles_its_tasks_and_the_next_one_sets_them_live(
    packed: tuple[str, str], tmp_path: Path
) -> None:
    store_url, model_id = packed
    model = ("--model-id", model_id, "--tasks", tasks_file(tmp_path, *ALPHABETS))
    early = job(tmp_path, "patterns", store_url, *model)
    assert (early.code, early.words["reason"]) == (3, "PROFILE_NOT_FOUND")
    profiles = {}
    for index, name in enumerate(ALPHABETS):
        ended = job(tmp_path, "profile", store_url, *model, index=index)
        assert ended.code == 0, ended.output
        assert ended.words["task"] == name
        profiles[name] = ended.words["profile"].removeprefix("blake3:")
    stamps = {info.path: info.modified for info in open_store(store_url).list()}
    again = job(tmp_path, "profile", store_url, *model, index=1)
    assert again.words == {"task": "capitals", "profile": f"blake3:{profiles['capitals']}"}
    assert {info.path: info.modified for info in open_store(store_url).list()} == stamps
    assert len(open_store(store_url).list("profiles")) == len(ALPHABETS)

    options = ("--metric", "peu", "--budget", "2/4", "--on-unknown", "reject")
    ended = job(tmp_path, "patterns", store_url, *model, *options)
    assert ended.code == 0, ended.output
    live = find_set(open_store(store_url))
    assert ended.words == {"patternSet": f"blake3:{live.set_id}"}
    assert [member.task for member in live.specialists] == sorted(ALPHABETS)
    assert live.document.on_unknown == "reject"
    assert [entry.budget for entry in live.document.generalist_retention] == ["2/4"]
    # A set of fewer tasks, and back again: exactly the listed ones are live.
    two = ("--model-id", model_id, "--tasks", tasks_file(tmp_path, "digits", "vowels"))
    assert job(tmp_path, "patterns", store_url, *two, *options).code == 0
    assert [member.task for member in find_set(open_store(store_url)).specialists] == ["digits", "vowels"]
    assert job(tmp_path, "patterns", store_url, *two, *options, "--answers", "none").words["reason"] == (
        "PROFILE_NOT_FOUND"
    )


TERMINATED = """
import os, signal
from premoe_runtime.offline.profile.unfinished import Unfinished
from premoe_worker.jobs.cli import main

save = Unfinished.save
Unfinished.save = lambda *arguments: (save(*arguments), os.kill(os.getpid(), signal.SIGTERM))
main()
"""


def test_a_profile_that_was_stopped_goes_on_and_a_model_too_large_is_read_layer_by_layer(
    packed: tuple[str, str], s3: S3Server, tmp_path: Path
) -> None:
    pack, store = open_pack(packed[0]), open_store(s3.url)
    for info in open_store(packed[0]).list(f"models/{pack.manifest().model_id}"):
        store.put(info.path, open_store(packed[0]).get(info.path))
    tasks = tasks_file(tmp_path, "digits", samples=300)
    write_examples(tmp_path / "digits.jsonl", "digits", 300)
    model = ("--model-id", packed[1], "--tasks", tasks)
    log = tmp_path / "log"
    stopped = subprocess.run(
        [sys.executable, "-c", TERMINATED, "profile", s3.url, *map(str, model)],
        capture_output=True,
        text=True,
        env=environ({"PREMOE_TERMINATION_LOG": str(log), "JOB_COMPLETION_INDEX": "0"}),
        timeout=200,
        check=False,
    )
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert json.loads(log.read_text())["reason"] == "STOPPED"
    assert len(store.list("unfinished")) == 1
    ended = job(tmp_path, "profile", s3.url, *model, index=0)
    assert ended.code == 0, ended.output
    assert "the profile that was stopped goes on behind step 1" in ended.output
    assert store.list("unfinished") == []

    needed = room(pack, torch.float32, USUAL)
    memory = PROCESS_BYTES + (needed.whole + needed.one_layer) // 2
    streamed = job(tmp_path, "profile", packed[0], *model, "--memory", memory, "--spool", tmp_path / "spool", index=0)
    assert "the model is profiled layer by layer" in streamed.output
    assert streamed.words == ended.words


def test_calibration_data_in_s3(s3: S3Server, packed: tuple[str, str], tmp_path: Path) -> None:
    store = open_store(f"{s3.url}/calibration")
    store.put("digits.jsonl", write_examples(tmp_path / "digits.jsonl", "digits", 30).read_bytes())
    tasks = tmp_path / "tasks.json"
    tasks.write_text(json.dumps([{"name": "digits", "data": f"{s3.url}/calibration/digits.jsonl", "samples": 25}]))
    ended = job(tmp_path, "profile", packed[0], "--model-id", packed[1], "--tasks", tasks, index=0)
    assert ended.code == 0, ended.output
    assert ended.words["task"] == "digits"


def test_bad_calibration_data_names_the_line_and_loads_no_model(
    packed: tuple[str, str], tmp_path: Path, here: Callable[..., Ended]
) -> None:
    tasks = tasks_file(tmp_path, "digits", "capitals")
    data = tmp_path / "capitals.jsonl"
    data.write_text(data.read_text() + '{"prompt": "A"\n')
    ended = here("profile", packed[0], "--model-id", packed[1], "--tasks", tasks, index=1)
    assert (ended.code, ended.words["reason"]) == (2, "CALIBRATION_INVALID")
    assert f"{data}:31: " in ended.words["message"]


def test_a_score_that_not_every_profile_has_is_measured_and_ranks(packed: tuple[str, str], tmp_path: Path) -> None:
    model = (packed[0], "--model-id", packed[1], "--tasks", tasks_file(tmp_path, "digits", "capitals", samples=25))
    options = (*model, "--metric", "sens-norm")
    ended = job(tmp_path, "profile", *options)
    assert ended.code == 0, ended.output
    ended = job(tmp_path, "patterns", *options, "--budget", "2/4")
    assert ended.code == 0, ended.output
    store = open_store(packed[0])
    member, *_ = find_set(store).specialists
    assert Pattern.load(store.get, member.pattern_id).metric == "sens-norm"
    # A profile of one score does for no other.
    other = job(tmp_path, "patterns", *model, "--metric", "taylor", "--budget", "2/4")
    assert (other.code, other.words["reason"]) == (3, "PROFILE_NOT_FOUND")


BAD_PROFILES: dict[str, tuple[dict[str, object], int, str]] = {
    "no data": ({"data": "/no/such/file.jsonl"}, 3, "CALIBRATION_NOT_FOUND"),
    "no task of that index": ({"index": 5}, 2, "TASKS_INVALID"),
    "no such model": ({"model": "blake3:" + "0" * 64}, 3, "MODEL_NOT_FOUND"),
    "no such store": ({"store": "ftp://x"}, 2, "STORE_URL"),
    "no such score": ({"metric": "impacts"}, 2, "SCORE_UNKNOWN"),
}


@pytest.mark.parametrize("case", BAD_PROFILES.values(), ids=BAD_PROFILES.keys())
def test_bad_profile_jobs(
    packed: tuple[str, str], tmp_path: Path, here: Callable[..., Ended], case: tuple[dict[str, object], int, str]
) -> None:
    changes, code, reason = case
    tasks = tasks_file(tmp_path, "digits")
    if "data" in changes:
        tasks.write_text(json.dumps([{"name": "digits", "data": changes["data"]}]))
    model = ["--model-id", changes.get("model", packed[1]), "--tasks", tasks]
    model += ["--metric", changes["metric"]] if "metric" in changes else []
    ended = here("profile", changes.get("store", packed[0]), *model, index=int(str(changes.get("index", 0))))
    assert (ended.code, ended.words["reason"]) == (code, reason), ended
    assert "\n" not in ended.words["message"]


def test_torch_is_not_needed_to_pack_or_to_build_patterns(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "import premoe_worker.jobs.cli\n"
        "sys.exit(bool({'torch', 'transformers', 'rich', 'matplotlib', 'premoe_local'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
