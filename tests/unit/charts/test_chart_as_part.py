"""The charts as optional parts of another chart."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.charts import CHART, CRD_CHART, HelmFailed, of_kind, render, values_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def parent(folder: Path) -> Path:
    """A chart with both of ours as dependencies, each behind a condition."""
    made = folder / "parent"
    names = {"premoe": CHART, "premoe-crds": CRD_CHART}
    for name, chart in names.items():
        shutil.copytree(chart, made / "charts" / name)
    versions = {name: yaml.safe_load((chart / "Chart.yaml").read_text())["version"] for name, chart in names.items()}
    dependencies = [{"name": n, "version": v, "condition": f"{n}.enabled"} for n, v in versions.items()]
    document = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": dependencies}
    (made / "Chart.yaml").write_text(yaml.safe_dump(document))
    return made


@pytest.mark.parametrize("enabled", [True, False])
def test_a_parent_switches_them_by_its_condition(tmp_path: Path, enabled: bool) -> None:
    switch: dict[str, Any] = {"enabled": enabled}
    values = {"premoe": {**values_of("plain"), **switch}, "premoe-crds": switch, "global": {"theirs": 1}}
    objects = render(parent(tmp_path), values)
    assert bool(of_kind(objects, "CustomResourceDefinition")) == enabled
    assert bool(of_kind(objects, "Deployment")) == enabled


def test_a_misspelt_value_is_still_refused(tmp_path: Path) -> None:
    values = {"premoe": {**values_of("plain"), "enabledd": True}, "premoe-crds": {"enabled": False}}
    with pytest.raises(HelmFailed, match="enabledd"):
        render(parent(tmp_path), values)
