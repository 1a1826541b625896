"""How clients outside of the cluster come to the gateway: an Ingress, an HTTPRoute, or neither."""

from __future__ import annotations

import pytest
from support.charts import CHART, merged, named, of_kind, render, rendered, values_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_nothing_is_put_in_front_unless_asked_for() -> None:
    assert of_kind(rendered("plain"), "Ingress", "HTTPRoute") == []


def test_an_ingress_leads_every_host_to_the_service() -> None:
    ingress = named(rendered("full"), "Ingress", "premoe-gateway")
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [{"secretName": "models-example", "hosts": ["models.example"]}]
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert (rule["host"], path["path"], path["pathType"]) == ("models.example", "/", "Prefix")
    backend = path["backend"]["service"]
    service = named(rendered("full"), "Service", backend["name"])
    assert backend["port"]["name"] in [port["name"] for port in service["spec"]["ports"]]


def test_an_ingress_of_the_default_class_without_tls() -> None:
    values = {"gateway": {"ingress": {"enabled": True, "hosts": ["a.example", "b.example"]}}}
    ingress = named(render(CHART, merged(values_of("plain"), values)), "Ingress", "premoe-gateway")
    assert set(ingress["spec"]) == {"rules"}
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == ["a.example", "b.example"]


def test_a_route_outlasts_the_longest_answer() -> None:
    route = named(rendered("full"), "HTTPRoute", "premoe-gateway")["spec"]
    assert route["parentRefs"] == [{"name": "public", "namespace": "edge"}]
    assert route["hostnames"] == ["models.example"]
    (rule,) = route["rules"]
    assert rule["timeouts"]["request"] == "310s"
    service = named(rendered("full"), "Service", "premoe-gateway")
    assert rule["backendRefs"] == [{"name": "premoe-gateway", "port": service["spec"]["ports"][0]["port"]}]
