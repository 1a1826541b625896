from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor
from premoe.experts.v1 import experts_pb2
from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2
from premoe_servicekit.clients import IDEMPOTENT, service_config

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
