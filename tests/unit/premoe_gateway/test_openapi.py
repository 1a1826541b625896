"""schemathesis over the OpenAPI description: what it promises holds, whatever is sent."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from premoe_gateway.access.keyring import Keyring
from premoe_gateway.console.routes import Console
from premoe_gateway.http.app import create_app
from premoe_gateway.search.executor import Searcher
from premoe_gateway.search.verifiers.named import NamedVerifiers
from premoe_gateway.search.verifiers.opening import Verifiers
from premoe_gateway.service import Gateway
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.gateway_doubles import EchoWorker, OneTask
from support.keys import write_keys

GATEWAY = Gateway([EchoWorker()], OneTask(), on_unknown=None, timeout_s=30)
asyncio.run(GATEWAY.refresh())  # /health tells what was last heard, whichever test comes first
SEARCHER = Searcher(GATEWAY, Verifiers(NamedVerifiers()), most=16, timeout_s=30)
APP = create_app(GATEWAY, console=Console(GATEWAY, 60), searcher=SEARCHER)
DESCRIPTION = schemathesis.openapi.from_asgi("/openapi.json", APP)

FOLDER = tempfile.TemporaryDirectory()
AUTHORIZATION = {"Authorization": f"Bearer {write_keys(Path(FOLDER.name) / 'keys.json', {'alice': {}})['alice']}"}
KEYED = schemathesis.openapi.from_asgi(
    "/openapi.json",
    create_app(
        GATEWAY,
        console=Console(GATEWAY, 60),
        keyring=Keyring(Path(FOLDER.name) / "keys.json"),
    ),
)


@DESCRIPTION.parametrize()
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_operation_keeps_its_promise(case: schemathesis.Case[Any]) -> None:
    # A schema cannot say that the last message is the user's, nor what models there are.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


@KEYED.parametrize()
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_and_none_without_a_key(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(headers=AUTHORIZATION, excluded_checks=[positive_data_acceptance])


def test_every_path_is_described_and_every_description_is_a_path() -> None:
    served = {getattr(route, "path", "").replace(":path", "") for route in APP.routes}
    assert set(DESCRIPTION.raw_schema["paths"]) == served - {"/openapi.json", "/docs", "/", "/console/{file}"}
