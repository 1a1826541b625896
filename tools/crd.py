"""The CustomResourceDefinition of PrunedModel, generated from ``resources.py``.

python -m crd --write charts/premoe-crds/templates/prunedmodels.yaml
python -m crd --check charts/premoe-crds/templates/prunedmodels.yaml     # exit 1 when stale
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml
from crd_reference import reference
from crd_rules import ROOT_RULES, RULES
from crd_schema import structural
from premoe_operator.api.resources import GROUP, KIND, PLURAL, VERSION, PrunedModelSpec
from premoe_operator.api.status import PrunedModelStatus

SCHEMA_VERSION = 11
"""Raised by hand with every change of the schema: the chart refuses an older definition than its operator needs."""
SCHEMA_ANNOTATION = f"{GROUP}/schema"

_HEADER = "# Generated from operator/premoe_operator/api/resources.py by `make crds`; do not edit.\n"
_COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("Ready", '.status.conditions[?(@.type=="Ready")].status', "Whether everything is as the spec says", 0),
    ("Reason", ".status.reason", "Why it is or is not", 0),
    ("Budget", ".status.budget", "Experts activated per token out of experts kept per layer on average", 0),
    ("Workers", ".status.workersSummary", "Ready out of wanted workers", 0),
    ("Patterns", ".status.patternsSummary", "Profiled out of wanted tasks", 0),
    ("Age", ".metadata.creationTimestamp", "Time since it was created", 0),
    ("Model", ".spec.model.uri", "The checkpoint", 1),
    ("Endpoint", ".status.endpoints.grpc", "Where clients reach the workers", 1),
)


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as a plain object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "premoe", "app.kubernetes.io/part-of": "premoe"},
            "annotations": {
                SCHEMA_ANNOTATION: str(SCHEMA_VERSION),
                # Uninstalling the chart must not delete every PrunedModel of the cluster.
                "helm.sh/resource-policy": "keep",
            },
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["pmodel"],
                "categories": ["premoe"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [_column(*column) for column in _COLUMNS],
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.workers.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "schema": {"openAPIV3Schema": schema()},
                }
            ],
        },
    }


def manifest() -> str:
    """The definition as YAML, as the chart holds it."""
    return _HEADER + yaml.dump(definition(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def schema() -> dict[str, Any]:
    """The structural schema of the whole object."""
    return {
        "type": "object",
        "description": "A mixture-of-experts model served with a part of its experts resident.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Always {GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"Always {KIND}."},
            "metadata": {"type": "object"},
            "spec": structural(PrunedModelSpec, RULES),
            "status": structural(PrunedModelStatus, RULES, defaults=False),
        },
        "x-kubernetes-validations": [rule.document() for rule in ROOT_RULES],
    }


def _column(name: str, path: str, description: str, priority: int) -> dict[str, Any]:
    kind = "date" if name == "Age" else "string"
    column = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return {**column, "priority": priority} if priority else column


class _Dumper(yaml.SafeDumper):
    """Writes no anchors: the schema repeats parts, and people read it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@click.command()
@click.option("--write", type=click.Path(path_type=Path, dir_okay=False), help="Write the manifest to this file.")
@click.option("--check", type=click.Path(path_type=Path, dir_okay=False), help="Fail unless this file is up to date.")
@click.option("--reference", "pages", is_flag=True, help="The field reference in Markdown, in place of the manifest.")
def main(write: Path | None, check: Path | None, pages: bool) -> None:
    """Print, write or check the CustomResourceDefinition of PrunedModel."""
    text = reference(schema(), SCHEMA_VERSION) if pages else manifest()
    if check is not None and (not check.is_file() or check.read_text(encoding="utf-8") != text):
        raise click.ClickException(f"{check} is stale; run make crds")
    if write is not None:
        partial = write.with_name(f".{write.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(write)
    if check is None and write is None:
        click.echo(text, nl=False)


if __name__ == "__main__":
    main()
