from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from premoe.experts.v1 import experts_pb2
from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2
from premoe_servicekit.clients import IDEMPOTENT, blocking_channel, channel, service_config
from premoe_servicekit.server import RpcServer
from premoe_servicekit.settings import ServerSettings

FILES = [experts_pb2, patterns_pb2, worker_pb2]


@pytest.mark.parametrize("module", FILES, ids=lambda module: module.__name__)
def test_the_retried_calls_are_those_the_protos_call_idempotent(module: object) -> None:
    descriptor: FileDescriptor = module.DESCRIPTOR  # type: ignore[attr-defined]
    text = Path(str(module.__file__).replace("_pb2.py", ".proto")).read_text()  # type: ignore[attr-defined]
    documented = {
        name
        for comment, name in re.findall(r"((?:^  //.*\n)+)  rpc (\w+)\(", text, re.MULTILINE)
        if "Idempotent" in comment
    }
    services = descriptor.services_by_name.values()
    retried = {name for service in services for name in IDEMPOTENT.get(service.full_name, ())}
    assert retried == documented
    assert retried <= {method.name for service in services for method in service.methods}


def test_the_service_config_is_json_with_a_policy_for_all_of_them() -> None:
    config = json.loads(service_config())
    (methods,) = config["methodConfig"]
    assert {(one["service"], one["method"]) for one in methods["name"]} == {
        (service, method) for service, names in IDEMPOTENT.items() for method in names
    }
    assert methods["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]


async def test_calls_between_our_processes_never_go_to_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = RpcServer([], ServerSettings(port=0))
    # By name: gRPC leaves numeric addresses of the loopback alone in some versions.
    address = (await server.start()).replace("127.0.0.1", "localhost")
    try:
        request = health_pb2.HealthCheckRequest()
        async with channel(address) as opened:
            await health_pb2_grpc.HealthStub(opened).Check(request, timeout=10)
        with blocking_channel(address) as blocking:
            check = health_pb2_grpc.HealthStub(blocking).Check
            await asyncio.to_thread(check, request, timeout=10)
    finally:
        await server.stop(0)
