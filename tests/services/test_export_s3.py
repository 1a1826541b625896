"""Exporting to a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.exports import packed, random_pattern
from support.servers import S3Server, s3_server

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import Conflict, Unavailable
from premoe_runtime.offline.export.cut import Cut, cut, kept_by
from premoe_runtime.offline.export.writer import export
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.storage import Store, open_store

pytestmark = pytest.mark.services


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


def chosen(reader: PackReader) -> Cut:
    manifest = reader.manifest()
    pattern = random_pattern(manifest)
    kept = kept_by(pattern, Budget(4, 8), "uniform", manifest)
    return cut(pattern, kept, manifest, active=4, spread="uniform", target="transformers", accept_rescale=False)


def test_a_checkpoint_in_s3_is_the_local_one(s3: S3Server, tmp_path: Path) -> None:
    reader = packed(tmp_path)
    export(reader, chosen(reader), str(tmp_path / "cut"))
    url = f"{s3.url}/team/cut"
    done = export(reader, chosen(reader), url)
    assert done.url == url
    local = {file.name: file.read_bytes() for file in (tmp_path / "cut").iterdir()}
    store = open_store(f"{s3.url}/team")
    assert {info.path: store.get(info.path) for info in store.list()} == {
        f"cut/{name}": data for name, data in local.items()
    }
    with pytest.raises(Conflict, match="is not empty"):
        export(reader, chosen(reader), url)


def test_an_export_that_broke_off_while_it_appeared_is_finished(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no rename: files move one by one, config.json last, so that nobody takes half of them for a model."""
    reader, url = packed(tmp_path), f"{s3.url}/cut"
    moved: list[str] = []
    copy = Store.copy

    def broken(self: Store, source: str, target: str) -> None:
        if len(moved) == 2:
            raise Unavailable("the server has gone")
        moved.append(target)
        copy(self, source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "copy", broken)
        with pytest.raises(Unavailable):
            export(reader, chosen(reader), url)
    store = open_store(s3.url)
    assert len(store.list("cut")) == 2
    assert not store.exists("cut/config.json")
    assert export(reader, chosen(reader), url).url == url
    assert store.exists("cut/config.json")
    assert store.list(".cut.partial") == []
