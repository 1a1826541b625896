"""`premoe patterns` beside running services: filling an index, and the life of a set on a mesh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from support.ports import stable_port
from support.processes import serving
from support.stored_patterns import WEIGHTS, store_set

from premoe_runtime.formats.live import go_live
from premoe_runtime.formats.pattern_set import set_paths
from premoe_runtime.storage import open_store


def run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, ["patterns", *(str(argument) for argument in arguments)])


def document(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_an_index_is_filled_live_sets_first_and_again_where_it_was_stopped(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'store'}"
    store = open_store(url)
    other, before, live = (store_set(store, seed=seed) for seed in range(3))
    for now, one in enumerate((before, live)):
        go_live(store.get, store.put, WEIGHTS, one.set_id, float(now))
    arguments = ["--store-url", url, "--qdrant", str(tmp_path / "index")]
    with serving("premoe_retrieval.cli", arguments) as child:
        told = document("reindex", url, "--retrieval", child.address)
        assert [*told["already"], *told["indexed"]] == [live.set_id, before.set_id, other.set_id]
        assert told["exemplars"] == 21 * len(told["indexed"])
    with serving("premoe_retrieval.cli", arguments) as child:
        _, damaged = store_set(store, seed=3), store_set(store, seed=4)
        store.delete(set_paths(damaged.set_id)[1])
        ended = run("reindex", url, "--retrieval", child.address)
        assert ended.exit_code == 5
        assert "indexed 1 sets with 21 exemplars; 3 were there already" in ended.stdout
        noted, error = ended.stderr.splitlines()
        assert noted.startswith("note: ")
        assert error.startswith("error: 1 of 5 sets are not whole")
    stopped = run("reindex", url, "--retrieval", f"127.0.0.1:{stable_port()}")
    assert (stopped.exit_code, "does not answer" in stopped.stderr) == (6, True)
    assert stopped.stderr.count("\n") == 1
    half = run("reindex", url, "--retrieval", "127.0.0.1:1", "--tls-cert", tmp_path / "cert.pem")
    assert (half.exit_code, "go together" in half.stderr) == (2, True)
