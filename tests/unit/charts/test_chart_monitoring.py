"""Alerts, dashboard and scraping: they name ports, metrics and reasons that exist."""

from __future__ import annotations

import json
import re

import pytest
from premoe_operator.api.reasons import Reason
from support.charts import (
    CHART,
    ROOT,
    HelmFailed,
    Object,
    merged,
    named,
    of_kind,
    pod_templates,
    render,
    rendered,
    values_of,
)
from support.network_policies import matches

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PORT = 50054
FOREIGN = {"certmanager_certificate_expiration_timestamp_seconds"}


def test_nothing_is_made_unless_asked_for() -> None:
    assert of_kind(rendered("plain"), "ServiceMonitor", "PodMonitor", "PrometheusRule") == []
    assert not [obj for obj in of_kind(rendered("plain"), "ConfigMap") if "dashboard" in obj["metadata"]["name"]]
    assert not [name for name, pod in pod_templates(rendered("plain")) if "prometheus.io/scrape" in notes_on(pod)]


def test_the_service_monitor_selects_the_operators_service() -> None:
    monitor = named(rendered("full"), "ServiceMonitor", "premoe-operator")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    service = named(rendered("full"), "Service", "premoe-operator")
    assert service["metadata"]["labels"].items() >= monitor["spec"]["selector"]["matchLabels"].items()
    assert [item["name"] for item in service["spec"]["ports"]] == [monitor["spec"]["endpoints"][0]["port"]]


def test_pod_monitors_select_pods_that_have_the_port() -> None:
    monitor = named(rendered("full"), "PodMonitor", "premoe")
    selected = {
        name: pod
        for name, pod in pod_templates(rendered("full"))
        if matches(monitor["spec"]["selector"], pod["metadata"]["labels"])
    }
    assert selected.keys() == {f"Deployment/premoe-{part}" for part in ("retrieval", "expert-store", "gateway")}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for name, pod in selected.items():
        ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        assert ports[endpoint["port"]] == PORT, name
        assert notes_on(pod)["prometheus.io/port"] == str(PORT)
    assert notes_on(dict(pod_templates(rendered("full")))["Deployment/premoe-operator"])["prometheus.io/port"] == "8080"
    for part, prefix in (("retrieval", "RETRIEVAL"), ("expert-store", "EXPERT_STORE"), ("gateway", "GATEWAY")):
        config = named(rendered("full"), "ConfigMap", f"premoe-{part}")["data"]
        assert config[f"PREMOE_{prefix}_METRICS_PORT"] == str(PORT)


def test_workers_are_scraped_where_the_release_looks_after_them() -> None:
    everywhere = named(rendered("full"), "PodMonitor", "premoe-workers")["spec"]
    assert everywhere["namespaceSelector"] == {"any": True}
    values = merged(values_of("full"), {"watchNamespaces": ["team-a", "team-b"]})
    some = named(render(CHART, values), "PodMonitor", "premoe-workers")["spec"]
    assert some["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}
    worker = {"app.kubernetes.io/name": "premoe", "app.kubernetes.io/part-of": "premoe"}
    assert matches(some["selector"], {**worker, "app.kubernetes.io/component": "worker"})
    assert not matches(some["selector"], {**worker, "app.kubernetes.io/component": "gateway"})


def test_without_metrics_there_is_no_port_and_nothing_that_needs_one() -> None:
    objects = render(
        CHART, merged(values_of("full"), {"metrics": {"enabled": False, "podMonitor": {"enabled": False}}})
    )
    for name, pod in pod_templates(objects):
        ports = [port["name"] for each in pod["spec"]["containers"] for port in each.get("ports", [])]
        assert "metrics" not in ports, name
    (group,) = named(objects, "PrometheusRule", "premoe")["spec"]["groups"]
    assert group["name"] == "premoe-operator"
    with pytest.raises(HelmFailed, match="there would be no port to scrape"):
        render(CHART, merged(values_of("full"), {"metrics": {"enabled": False}}))


def test_the_certificates_of_workers_are_watched_where_the_release_looks_after_them() -> None:
    def expression(values: Object) -> str:
        groups = named(render(CHART, values), "PrometheusRule", "premoe")["spec"]["groups"]
        return next(
            str(rule["expr"])
            for group in groups
            for rule in group["rules"]
            if rule["alert"] == "PremoeCertificateExpires"
        )

    metric = "certmanager_certificate_expiration_timestamp_seconds"
    own = f'{metric}{{exported_namespace="serving", name=~"premoe-(operator|retrieval|expert-store|gateway|test)"}}'
    assert expression(values_of("full")) == f'({own} or {metric}{{name=~".+-worker"}}) - time() < 7 * 86400'
    some = expression(merged(values_of("full"), {"watchNamespaces": ["a", "b"]}))
    assert some == f'({own} or {metric}{{name=~".+-worker",exported_namespace=~"a|b"}}) - time() < 7 * 86400'


def test_without_operator_the_alerts_on_serving_stay() -> None:
    objects = render(CHART, merged(values_of("full"), {"operator": {"enabled": False}}))
    (group,) = named(objects, "PrometheusRule", "premoe")["spec"]["groups"]
    assert group["name"] == "premoe-serving"


def test_alerts_and_dashboard_name_metrics_that_exist() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    listed = dict(re.findall(r"^\| `([a-z0-9_:]+)` \| (\w+) \|", page, re.MULTILINE))
    series = {
        name + suffix
        for name, kind in listed.items()
        for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }
    for where, expressions in (("alerts", [rule["expr"] for rule in rules()]), ("dashboard", dashboard_expressions())):
        used = {name for text in expressions for name in re.findall(r"\b(?:premoe|certmanager)[_:]\w+", text)}
        assert used
        assert used <= series | FOREIGN, where


def test_the_dashboard_shows_every_metric_of_workers_and_only_labels_that_they_have() -> None:
    text = " ".join(dashboard_expressions())
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    labels = {
        label for row in re.findall(r"^\| `premoe:.*", page, re.MULTILINE) for label in re.findall(r"`(\w+)`", row)
    }
    for grouped in re.findall(r"by \(([\w, ]+)\)", text):
        assert set(grouped.replace(" ", "").split(",")) <= labels | {"le", "namespace", "pod"}, grouped


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    shipped = named(rendered("full"), "ConfigMap", "premoe-dashboard")
    assert shipped["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert notes_on(shipped)["grafana_folder"] == "serving"
    panels = json.loads(shipped["data"]["premoe.json"])["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_alerts_name_reasons_that_exist_and_miss_none() -> None:
    reasons = {str(reason) for reason in Reason}
    by_name = {rule["alert"]: rule["expr"] for rule in rules()}
    left_out = re.search(r'reason!~"([\w|]+)"', by_name["PremoeModelNotReady"])
    waiting = re.search(r'reason=~"([\w|]+)"', by_name["PremoeModelPreparationTakesLong"])
    assert left_out is not None
    assert waiting is not None
    assert set(left_out[1].split("|")) <= reasons
    fine = {"AllReady", "Suspended", "ScaledToZero", "HandedOver"}
    assert set(waiting[1].split("|")) == set(left_out[1].split("|")) - fine


def test_every_alert_links_to_a_section_that_exists() -> None:
    for rule in rules():
        page, _, section = rule["annotations"]["runbook_url"].partition("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
        wanted = [str(reason).lower() for reason in Reason] if "$labels.reason" in section else [section]
        assert set(wanted) <= {heading.lower() for heading in headings}, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def rules() -> list[Object]:
    groups = named(rendered("full"), "PrometheusRule", "premoe")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    document = json.loads((CHART / "files" / "dashboard.json").read_text())
    variables = [each["query"]["query"] for each in document["templating"]["list"] if each["type"] == "query"]
    return variables + [target["expr"] for panel in document["panels"] for target in panel.get("targets", [])]


def notes_on(obj: Object) -> dict[str, str]:
    found: dict[str, str] = obj["metadata"].get("annotations", {})
    return found
