"""schemathesis over the OpenAPI description: what it promises holds, whatever is sent."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from premoe_gateway.http.app import create_app
from premoe_gateway.service import Gateway
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.gateway_doubles import EchoWorker, OneTask

APP = create_app(Gateway([EchoWorker()], OneTask(), on_unknown=None, timeout_s=30))
DESCRIPTION = schemathesis.openapi.from_asgi("/openapi.json", APP)


@DESCRIPTION.parametrize()
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_operation_keeps_its_promise(case: schemathesis.Case[Any]) -> None:
    # A schema cannot say that the last message is the user's, nor what models there are.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


def test_every_path_is_described_and_every_description_is_a_path() -> None:
    served = {getattr(route, "path", "").replace(":path", "") for route in APP.routes}
    assert set(DESCRIPTION.raw_schema["paths"]) == served - {"/openapi.json"}
