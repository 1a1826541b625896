"""schemathesis over the OpenAPI description: what it promises holds, whatever is sent."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, settings
from premoe_gateway.http import create_app
from premoe_gateway.service import Gateway
from schemathesis.checks import CHECKS, load_all_checks
from support.gateway_doubles import EchoWorker, OneTask

APP = create_app(Gateway([EchoWorker()], OneTask(), on_unknown=None, timeout_s=30))
DESCRIPTION = schemathesis.openapi.from_asgi("/openapi.json", APP)
load_all_checks()
UNPROMISED = {
    # Rules that a schema cannot say: the last message is the user's, the name is that of a model.
    "positive_data_acceptance",
}
CHECKED = [CHECKS.get_one(name) for name in CHECKS.get_all_names() if name not in UNPROMISED]


@DESCRIPTION.parametrize()
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_operation_keeps_its_promise(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKED)


def test_every_path_is_described_and_every_description_is_a_path() -> None:
    served = {getattr(route, "path", "").replace(":path", "") for route in APP.routes}
    assert set(DESCRIPTION.raw_schema["paths"]) == served - {"/openapi.json"}
