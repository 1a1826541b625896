from __future__ import annotations

import json
from pathlib import Path

import pytest
from premoe_worker.jobs.tasks import Task, chosen, read_tasks

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.storage import open_store


def written(path: Path, document: object) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_tasks_are_read_in_order(tmp_path: Path) -> None:
    file = written(tmp_path / "tasks.json", [{"name": "add", "data": "a", "samples": 3}, {"name": "rev", "data": "b"}])
    tasks = read_tasks(file)
    assert tasks == (Task(name="add", data="a", samples=3), Task(name="rev", data="b"))
    assert chosen(tasks, None) == tasks
    assert chosen(tasks, 1) == (tasks[1],)


FAULTS: dict[str, tuple[object, str]] = {
    "no JSON": ("[", "Invalid JSON"),
    "no list": ({"name": "add"}, "valid"),
    "no tasks": ([], "lists no task"),
    "unknown field": ([{"name": "add", "data": "a", "weight": 1}], r"0\.weight"),
    "no data": ([{"name": "add"}], r"0\.data: Field required"),
    "no samples": ([{"name": "add", "data": "a", "samples": 0}], r"0\.samples"),
    "bad name": ([{"name": "Add!", "data": "a"}], "is no task name"),
    "reserved": ([{"name": "generalist", "data": "a"}], "is no task name"),
    "twice": ([{"name": "add", "data": "a"}, {"name": "add", "data": "b"}], "task add is listed twice"),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS.keys())
def test_faults_are_one_line(tmp_path: Path, case: tuple[object, str]) -> None:
    with pytest.raises(InvalidInput, match=case[1]) as caught:
        read_tasks(written(tmp_path / "tasks.json", case[0]))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.json: no such file of tasks"):
        read_tasks(tmp_path / "nothing.json")


@pytest.mark.parametrize("index", [-1, 1])
def test_an_index_beyond_the_tasks_is_refused(index: int) -> None:
    with pytest.raises(InvalidInput, match=f"there is no task {index}; the file lists 1"):
        chosen([Task(name="add", data="a")], index)


def test_calibration_data_comes_from_files_and_objects() -> None:
    store = open_store("memory://calibration/folder")
    store.put("add.jsonl", b'{"prompt": "1+1", "answer": "2"}\n{"prompt": "1+2", "answer": "3"}\n{"prompt": 3}\n')
    task = Task(name="add", data="memory://calibration/folder/add.jsonl", samples=1)
    with pytest.raises(InvalidInput, match=r"^memory://calibration/folder/add\.jsonl:3: \"prompt\" is a int"):
        task.examples("given")
    store.put("add.jsonl", b'{"prompt": "1+1", "answer": "2"}\n{"prompt": "1+2", "answer": "3"}\n')
    assert [example.answer for example in task.examples("given")] == ["2"]
    with pytest.raises(NotFound, match="no such calibration object"):
        Task(name="add", data="memory://calibration/other.jsonl").examples("given")
