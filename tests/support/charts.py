"""Helm in tests: render a chart to objects, or run helm against a control plane.

for obj in render(CHART, values_file("plain"), release="premoe"):
    ...
"""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from support.cluster_fixtures import require_programs
from support.cluster_programs import cluster_program
from support.control_plane import ControlPlane

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "premoe"
CRD_CHART = ROOT / "charts" / "premoe-crds"
CERT_MANAGER = "cert-manager.io/v1"
PROFILES = ("plain", "secret", "full")
"""Files ci/NAME-values.yaml of the chart."""
HELM_TIMEOUT_S = 100.0

Object = dict[str, Any]


class HelmFailed(RuntimeError):
    """helm ended with an error; the text is what it wrote to stderr."""


def helm(*arguments: str, stdin: str | None = None, kubeconfig: Path | None = None) -> str:
    """Run helm and return its output. Raises HelmFailed; skips the test where helm is not built."""
    require_programs("helm")
    done = subprocess.run(
        [cluster_program("helm"), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=HELM_TIMEOUT_S,
        env={"HOME": _home(), "PATH": os.defpath, "KUBECONFIG": str(kubeconfig or "/nonexistent")},
    )
    if done.returncode:
        raise HelmFailed(done.stderr.strip())
    return done.stdout


def values_file(profile: str) -> Path:
    """The values of one of ``PROFILES``."""
    return CHART / "ci" / f"{profile}-values.yaml"


def values_of(profile: str) -> Object:
    """The same as a mapping, a new one each time."""
    loaded: Object = yaml.safe_load(values_file(profile).read_text())
    return loaded


def merged(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """``right`` over ``left``, level by level, as Helm does it."""
    result = dict(left)
    for key, value in right.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def values_arguments(values: Mapping[str, Any] | Path | None) -> tuple[list[str], str | None]:
    """Flags and standard input that hand values to helm."""
    if values is None:
        return [], None
    if isinstance(values, Path):
        return ["--values", str(values)], None
    return ["--values", "-"], json.dumps(values)


def render(
    chart: Path,
    values: Mapping[str, Any] | Path | None = None,
    *,
    release: str = "premoe",
    namespace: str = "serving",
    flags: Sequence[str] = (),
) -> list[Object]:
    """The objects that ``helm template`` makes, test pods included. Raises HelmFailed."""
    given, stdin = values_arguments(values)
    return parse(helm("template", release, str(chart), "--namespace", namespace, *given, *flags, stdin=stdin))


def notes_of(values: Mapping[str, Any]) -> str:
    """What ``helm install`` would tell whoever installs."""
    given, stdin = values_arguments(values)
    command = ["install", "premoe", str(CHART), "--namespace", "serving", "--dry-run=client", *given]
    return helm(*command, stdin=stdin).partition("NOTES:\n")[2]


@functools.cache
def rendered(profile: str) -> list[Object]:
    """The objects of one of ``PROFILES``, rendered once a run. Do not change them."""
    return render(CHART, values_file(profile))


def install(
    cluster: ControlPlane,
    chart: Path,
    namespace: str,
    values: Mapping[str, Any] | Path | None = None,
    *,
    release: str = "premoe",
    verb: Sequence[str] = ("install",),
    flags: Sequence[str] = (),
) -> None:
    """``helm install`` (or ``upgrade``), checked by the API server; no pod is waited for. Raises HelmFailed."""
    given, stdin = values_arguments(values)
    command = [*verb, release, str(chart), "--namespace", namespace, *given, *flags]
    helm(*command, stdin=stdin, kubeconfig=cluster.kubeconfig)


def parse(text: str) -> list[Object]:
    """The objects of a YAML stream."""
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    return [obj for obj in objects if obj["kind"] in kinds]


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name. Raises LookupError."""
    found = [obj for obj in of_kind(objects, kind) if obj["metadata"]["name"] == name]
    if len(found) != 1:
        raise LookupError(f"{len(found)} objects {kind}/{name}")
    return found[0]


def pod_templates(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod that the objects make: ("Kind/name", {metadata, spec})."""
    for obj in objects:
        if obj["kind"] == "Pod":
            yield f"Pod/{obj['metadata']['name']}", obj
        elif "template" in obj.get("spec", {}):
            yield f"{obj['kind']}/{obj['metadata']['name']}", with_claims(obj)


def with_claims(workload: Object) -> Object:
    """The pod template of a workload, with the volumes that a StatefulSet adds for its claims."""
    template: Object = copy.deepcopy(workload["spec"]["template"])
    for claim in workload["spec"].get("volumeClaimTemplates", []):
        name = claim["metadata"]["name"]
        template["spec"]["volumes"].append({"name": name, "persistentVolumeClaim": {"claimName": f"{name}-0"}})
    return template


@functools.cache
def _home() -> str:
    """helm's folders, so that plug-ins and repositories of whoever runs the tests change nothing."""
    # Kept by the module, removed at the end of the process.
    global _home_folder
    _home_folder = tempfile.TemporaryDirectory(prefix="premoe-helm-")
    return _home_folder.name


_home_folder: tempfile.TemporaryDirectory[str]
