"""Alerts and scraping: they name metrics and reasons that the operator has."""

from __future__ import annotations

import re

import pytest
from premoe_operator.api.reasons import Reason
from premoe_operator.run.metrics import Metrics
from support.charts import ROOT, Object, named, of_kind, rendered

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FOREIGN = {"certmanager_certificate_expiration_timestamp_seconds"}


def test_nothing_is_made_unless_asked_for() -> None:
    assert of_kind(rendered("plain"), "ServiceMonitor", "PrometheusRule") == []


def test_the_service_monitor_selects_the_operators_service() -> None:
    monitor = named(rendered("full"), "ServiceMonitor", "premoe-operator")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    service = named(rendered("full"), "Service", "premoe-operator")
    assert service["metadata"]["labels"].items() >= monitor["spec"]["selector"]["matchLabels"].items()
    assert [item["name"] for item in service["spec"]["ports"]] == [monitor["spec"]["endpoints"][0]["port"]]


def test_alerts_name_metrics_that_exist() -> None:
    metrics = Metrics()
    metrics.show(lambda: {"AllReady": 1}, lambda: {"prunedmodels": 1.0}, lambda: 0)
    known = set(re.findall(r"^# TYPE (\S+)", metrics.text().decode(), re.MULTILINE)) | FOREIGN
    used = {name for rule in rules() for name in re.findall(r"\b(?:premoe|certmanager)_\w+", rule["expr"])}
    assert used
    assert used <= known


def test_alerts_name_reasons_that_exist_and_miss_none() -> None:
    reasons = {str(reason) for reason in Reason}
    by_name = {rule["alert"]: rule["expr"] for rule in rules()}
    left_out = re.search(r'reason!~"([\w|]+)"', by_name["PremoeModelNotReady"])
    waiting = re.search(r'reason=~"([\w|]+)"', by_name["PremoeModelPreparationTakesLong"])
    assert left_out is not None
    assert waiting is not None
    assert set(left_out[1].split("|")) <= reasons
    assert set(waiting[1].split("|")) == set(left_out[1].split("|")) - {"AllReady", "Suspended", "ScaledToZero"}


def test_every_alert_links_to_a_section_that_exists() -> None:
    for rule in rules():
        page, _, section = rule["annotations"]["runbook_url"].partition("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
        wanted = [str(reason).lower() for reason in Reason] if "$labels.reason" in section else [section]
        assert set(wanted) <= {heading.lower() for heading in headings}, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def rules() -> list[Object]:
    groups = named(rendered("full"), "PrometheusRule", "premoe-operator")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]
