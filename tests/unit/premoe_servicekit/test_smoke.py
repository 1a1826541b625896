"""The calls of `helm test`, against real servers with scripted answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from premoe.patterns.v1 import patterns_pb2
from premoe_servicekit.server import RpcServer
from premoe_servicekit.smoke import addresses, main
from premoe_servicekit.tls import Tls
from support.blob_pack import write_blob_pack
from support.certificates import Authority, TlsFolder, tls_folder
from support.fake_worker import MODEL, FakeRetrieval, FakeWorker, serving
from support.scripted_store import ScriptedStore, scripted

from premoe_runtime.formats.errors import InvalidInput, NotFound, Unavailable
from premoe_runtime.storage import open_store

BRIEF = {"PREMOE_SMOKE_TIMEOUT_S": "1"}
NAME = "premoe.serving.svc"


async def run(*arguments: str, environment: Mapping[str, str] = BRIEF) -> int:
    return await asyncio.to_thread(main, arguments, environment)


async def test_health_of_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    async with scripted(ScriptedStore()) as one, serving(FakeWorker()) as two:
        assert await run("health", f"dns:///{one.address}", two.address) == 0
    assert capsys.readouterr().out.splitlines() == [f"dns:///{one.address}: 1 SERVING", f"{two.address}: 1 SERVING"]


async def test_health_waits_for_a_server_that_is_only_starting(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(FakeWorker(), healthy=False) as server:
        checking = asyncio.create_task(run("health", server.address, environment={"PREMOE_SMOKE_TIMEOUT_S": "20"}))
        await asyncio.sleep(0.3)
        assert not checking.done()
        await server.set_serving(True)
        assert await checking == 0
    assert "SERVING" in capsys.readouterr().out


async def test_a_server_that_does_not_serve_fails_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(FakeWorker(), healthy=False) as server:
        assert await run("health", server.address) == Unavailable.exit_code
    assert capsys.readouterr().err == f"error: {server.address} ({server.address}) is not serving\n"


async def test_manifest_is_read_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack = write_blob_pack(open_store(str(tmp_path)), file_bytes=100)
    data = (tmp_path / pack.path("manifest.json")).read_bytes()

    async def answer() -> bytes:
        return data

    async with scripted(ScriptedStore(answer)) as server:
        assert await run("manifest", server.address, "--model-id", f"blake3:{pack.model_id}") == 0
    assert capsys.readouterr().out == f"{server.address}: manifest of {pack.model_id}, {len(data)} bytes\n"


async def test_a_broken_manifest_fails(capsys: pytest.CaptureFixture[str]) -> None:
    async with scripted(ScriptedStore()) as server:
        assert await run("manifest", server.address) == 5
    assert capsys.readouterr().err.startswith("error: manifest.json: ")


@pytest.mark.parametrize("model_id", ["", "blake3:" + "0" * 64])
async def test_a_store_without_packs_skips_unless_a_pack_is_named(
    model_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def refuse() -> bytes:
        raise NotFound("no pack here; make one with premoe pack", reason="MODEL_NOT_FOUND")

    async with scripted(ScriptedStore(refuse)) as server:
        code = await run("manifest", server.address, "--model-id", model_id)
    printed = capsys.readouterr()
    if model_id:
        assert (code, printed.err) == (NotFound.exit_code, "error: no pack here; make one with premoe pack\n")
    else:
        assert code == 0
        assert "SKIPPED: reading a manifest, because no model id is given: no pack here" in printed.out


async def test_generate_takes_the_pattern_that_retrieval_names(capsys: pytest.CaptureFixture[str]) -> None:
    worker, retrieval = FakeWorker(), FakeRetrieval()
    async with serving(worker) as workers, serving(retrieval) as found:
        arguments = ["generate", workers.address, "--retrieval", found.address, "--model", MODEL, "--prompt", "2 + 2"]
        assert await run(*arguments) == 0
    assert [request.prompt.text for request in worker.probes] == ["2 + 2"]
    assert [(request.pattern.pattern_id, request.model) for request in worker.requests] == [("p-add", MODEL)]
    assert capsys.readouterr().out.splitlines() == [
        f"{found.address}: SPECIALIST of task 'add', score 0.875",
        f"{workers.address}: {MODEL} answered with 3 tokens",
    ]


async def test_without_a_model_it_says_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("generate", "nowhere:1", "--retrieval", "nowhere:2", "--model", "") == 0
    assert capsys.readouterr().out == "SKIPPED: retrieve and generate, because no model is named (value tests.model)\n"


async def test_a_rejected_prompt_is_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    worker = FakeWorker()
    async with serving(worker) as workers, serving(FakeRetrieval(patterns_pb2.DECISION_REJECT)) as found:
        assert await run("generate", workers.address, "--retrieval", found.address, "--model", MODEL) == 0
    assert worker.requests == []
    assert "SKIPPED: generate, because the pattern set rejects this prompt" in capsys.readouterr().out


async def test_another_model_and_an_empty_answer_fail(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(FakeWorker(words=())) as workers, serving(FakeRetrieval()) as found:
        arguments = ["generate", workers.address, "--retrieval", found.address, "--model"]
        assert await run(*arguments, "other") == Unavailable.exit_code
        assert f"serves other; there is {MODEL}" in capsys.readouterr().err
        assert await run(*arguments, MODEL) == Unavailable.exit_code
        assert "ended its answer without a token" in capsys.readouterr().err


async def test_mutual_tls_by_the_name_of_the_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Replicas are called by address, which stands in no certificate."""
    authority = Authority()
    folder = tls_folder(tmp_path / "server", authority, NAME)
    async with tls_server(folder) as server:
        assert await run("health", server.address, environment=tls_environment(folder)) == 0
        other = tls_environment(folder) | {"PREMOE_SMOKE_TLS_SERVER_NAME": "other.serving.svc"}
        assert await run("health", server.address, environment=other) == Unavailable.exit_code
        foreign = tls_folder(tmp_path / "foreign", Authority("foreign"), NAME)
        assert await run("health", server.address, environment=tls_environment(foreign)) == Unavailable.exit_code
    assert capsys.readouterr().out == f"{server.address}: 1 SERVING\n"


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"PREMOE_SMOKE_TLS_CERT": "x"}, "error: PREMOE_SMOKE_TLS_CERT, _KEY and _CA go together\n"),
        ({"PREMOE_SMOKE_TIMEOUT_S": "soon"}, "error: PREMOE_SMOKE_TIMEOUT_S is 'soon'; give seconds\n"),
    ],
)
async def test_wrong_variables_fail_in_one_line(
    environment: dict[str, str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run("health", "localhost:1", environment=environment) == InvalidInput.exit_code
    assert capsys.readouterr().err == line


def test_addresses_of_a_target() -> None:
    assert addresses("dns:///127.0.0.1:50051") == ("127.0.0.1", ("127.0.0.1:50051",))
    assert addresses("[::1]:7") == ("::1", ("[::1]:7",))
    for wrong in ("localhost", "dns:///:1", "host:port"):
        with pytest.raises(InvalidInput, match="is no host:port"):
            addresses(wrong)
    with pytest.raises(Unavailable, match="stands for no address"):
        addresses("no-such-name.invalid:1")


@asynccontextmanager
async def tls_server(folder: TlsFolder) -> AsyncIterator[RpcServer]:
    tls = Tls(folder.folder / "tls.crt", folder.folder / "tls.key", folder.folder / "ca.crt")
    server = RpcServer([], folder.settings(), tls=tls)
    await server.start()
    await server.set_serving(True)
    try:
        yield server
    finally:
        await server.stop(0)


def tls_environment(folder: TlsFolder) -> dict[str, str]:
    return {
        **BRIEF,
        "PREMOE_SMOKE_TLS_CERT": str(folder.folder / "tls.crt"),
        "PREMOE_SMOKE_TLS_KEY": str(folder.folder / "tls.key"),
        "PREMOE_SMOKE_TLS_CA": str(folder.folder / "ca.crt"),
        "PREMOE_SMOKE_TLS_SERVER_NAME": NAME,
    }
