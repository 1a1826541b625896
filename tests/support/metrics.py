"""Metrics as a scraper reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
from premoe_servicekit.metrics import Metrics
from prometheus_client import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar, Sample

OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


@dataclass(frozen=True, slots=True)
class Scrape:
    """Families by name, without a counter's `_total`."""

    families: Mapping[str, Family]

    def value(self, sample: str, **labels: str) -> float:
        """The sum of the samples of this full name that carry these labels; 0 without any."""
        return sum(each.value for each in self._samples(sample) if labels.items() <= each.labels.items())

    def labels(self, sample: str, label: str) -> set[str]:
        """Values of a label over the samples of this full name."""
        return {each.labels[label] for each in self._samples(sample)}

    def exemplars(self, sample: str) -> list[Exemplar]:
        return [each.exemplar for each in self._samples(sample) if each.exemplar is not None]

    def _samples(self, name: str) -> Sequence[Sample]:
        return [each for family in self.families.values() for each in family.samples if each.name == name]


def parsed(text: str) -> Scrape:
    return Scrape({family.name: family for family in text_string_to_metric_families(text)})  # type: ignore[no-untyped-call]


def read(metrics: Metrics) -> Scrape:
    """What a scrape would give, without a server."""
    text = generate_latest(metrics.registry, escaping="allow-utf-8")  # type: ignore[no-untyped-call]
    return parsed(text.decode())


def scrape(address: str) -> Scrape:
    """Of a metrics port, in OpenMetrics. Raises httpx.HTTPError."""
    answer = httpx.get(f"http://{address}/metrics", headers=OPEN_METRICS, timeout=30)
    answer.raise_for_status()
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    return parsed(answer.text)
