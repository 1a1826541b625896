"""The CustomResourceDefinition as a value: structural, bounded, documented, and the same as the committed file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crd
import pytest
from click.testing import CliRunner
from crd_rules import ROOT_RULES, RULES
from premoe_operator.api.resources import parse_spec
from support.pruned_models import SMALLEST

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "charts/premoe-crds/templates/prunedmodels.yaml"
REFERENCE = ROOT / "docs/reference/prunedmodel.md"
VALIDATIONS = "x-kubernetes-validations"

Schema = dict[str, Any]


def schema_of(part: str) -> Schema:
    (version,) = crd.definition()["spec"]["versions"]
    found: Schema = version["schema"]["openAPIV3Schema"]["properties"][part]
    return found


def levels(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from levels(below, f"{path}.{name}")
    if "items" in schema:
        yield from levels(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from levels(schema["additionalProperties"], f"{path}{{}}")


def test_the_committed_file_and_the_reference_are_up_to_date() -> None:
    run = CliRunner()
    assert run.invoke(crd.main, ["--check", str(COMMITTED)]).exit_code == 0
    assert run.invoke(crd.main, ["--reference", "--check", str(REFERENCE)]).exit_code == 0


def test_check_refuses_a_stale_and_a_missing_file(tmp_path: Path) -> None:
    file = tmp_path / "crd.yaml"
    for _ in range(2):
        done = CliRunner().invoke(crd.main, ["--check", str(file)])
        assert (done.exit_code, done.output) == (1, f"Error: {file} is stale; run make crds\n")
        file.write_text("kind: Other\n")


def test_write_and_print_give_the_same_text(tmp_path: Path) -> None:
    file = tmp_path / "crd.yaml"
    assert CliRunner().invoke(crd.main, ["--write", str(file)]).exit_code == 0
    assert CliRunner().invoke(crd.main, []).output == file.read_text() == crd.manifest()
    assert list(tmp_path.iterdir()) == [file]


def test_it_is_small_enough_for_an_annotation_and_safe_in_a_template() -> None:
    """`kubectl apply` keeps the whole object as JSON in an annotation; all annotations together hold 256 KiB."""
    assert len(json.dumps(crd.definition(), separators=(",", ":"))) < 100 * 1024
    assert "{{" not in crd.manifest()


@pytest.mark.parametrize("part", ["spec", "status"])
def test_the_schema_is_structural(part: str) -> None:
    for path, level in levels(schema_of(part), part):
        assert isinstance(level["type"], str), path
        assert not {"$ref", "$defs", "anyOf", "allOf", "const", "title", "propertyNames"} & set(level), path
        assert level.get("additionalProperties") is not False, path
        if level["type"] == "integer":
            assert level["format"] in ("int32", "int64"), path
        if level["type"] == "object":
            kinds = {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"} & set(level)
            assert len(kinds) == 1, path


def test_every_text_list_and_map_of_the_spec_has_a_limit() -> None:
    limits = {"string": {"maxLength", "enum"}, "array": {"maxItems"}, "integer": {"maximum"}}
    for path, level in levels(schema_of("spec"), "spec"):
        wanted = limits.get(level["type"], set())
        if "additionalProperties" in level or "x-kubernetes-preserve-unknown-fields" in level:
            wanted = {"maxProperties"}
        assert not wanted or wanted & set(level), path


@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_field_is_documented_in_whole_sentences(part: str) -> None:
    for path, level in levels(schema_of(part), part):
        if path.endswith(("[]", "{}")):
            continue
        text = level.get("description", "")
        assert text, path
        assert text[0].isupper() or text[0].isdigit(), path
        assert "\n" not in text, path


def test_every_rule_is_attached_and_says_what_is_wrong() -> None:
    attached = [rule for _, level in levels(schema_of("spec"), "spec") for rule in level.get(VALIDATIONS, ())]
    texts = {rule["rule"] for rule in attached}
    for where, rules in RULES.items():
        for rule in rules:
            assert rule.rule in texts, where
            assert rule.message[-1].isalnum() or rule.message.endswith(")"), where
            assert len(rule.message) <= 200, where


def test_no_rule_of_a_hand_over_is_new_at_the_root() -> None:
    """The API server checks rules of the root at every write of a status, others only where their part changes."""
    assert len(ROOT_RULES) == 2
    rules = schema_of("spec")["properties"]["model"][VALIDATIONS]
    (needed,) = [rule for rule in rules if "takesOverFrom needs servedName" in rule["message"]]
    assert needed["fieldPath"] == ".servedName"


def test_defaults_are_those_of_the_classes() -> None:
    filled = {**SMALLEST, **{name: below["default"] for name, below in schema_of("spec")["properties"].items()
                             if "default" in below}}  # fmt: skip
    assert filled["workers"]["rollout"] == {"type": "Surge", "progressDeadlineSeconds": 1800}
    assert parse_spec(filled) == parse_spec(SMALLEST)


def test_no_default_is_empty() -> None:
    """Objects read back show what was chosen, not what was left out; only parts with defaults below are written."""
    for path, level in levels(schema_of("spec"), "spec"):
        if "default" in level and "properties" not in level:
            assert level["default"] not in ("", [], {}, None), path


SCHEMA_5 = {
    "spec": ("allocation", "patterns", "engine", "workers", "jobs", "access", "tracing", "suspend"),
    "spec.patterns": ("metric", "answers", "onUnknown"),
    "spec.engine": ("name", "device", "spare", "maxSequences", "maxTokens", "queueLimit"),
    "spec.workers": (
        *("replicas", "resources", "placement", "rollout", "startupTimeoutSeconds"),
        *("drainTimeoutSeconds", "scratchSize"),
    ),
    "spec.workers.placement": ("spread",),
    "spec.workers.placement.tolerations[]": ("operator",),
    "spec.workers.rollout": ("type", "progressDeadlineSeconds"),
    "spec.jobs": ("resources", "parallelism", "retries", "timeoutSeconds", "scratchSize"),
    "spec.expertStoreRef": ("port",),
    "spec.retrievalRef": ("port",),
    "spec.access": ("networkPolicy", "tls"),
    "spec.access.tls": ("mode",),
    "spec.access.tls.issuerRef": ("kind", "group"),
}
"""Fields that the API server filled in before."""


def test_what_the_api_server_fills_in_is_known_to_the_operator_before() -> None:
    """An operator refuses fields that it does not know, so one that is rolled back could read no object at all.

    A new default below a field that is new itself is in no object that does not use that field.
    """
    below_new_fields = {
        "spec.model.tokenSecretRef.key",
        "spec.jobs.placement.tolerations[].operator",
        "spec.jobs.pack.placement.tolerations[].operator",
    }
    known = {f"{part}.{field}" for part, fields in SCHEMA_5.items() for field in fields}
    found = [(path, level["default"]) for path, level in levels(schema_of("spec"), "spec") if "default" in level]
    filled_in = {path for path, _ in found}
    filled_in |= {f"{path}.{name}" for path, default in found if isinstance(default, dict) for name in default}
    assert filled_in - below_new_fields == known - {"spec.workers.startupTimeoutSeconds", "spec.engine.maxTokens"}


def test_columns_name_fields_that_exist() -> None:
    (version,) = crd.definition()["spec"]["versions"]
    names = [column["name"] for column in version["additionalPrinterColumns"]]
    assert names == ["Ready", "Reason", "Budget", "Workers", "Patterns", "Age", "Model", "Endpoint"]
    paths = {path.replace("[]", "") for part in ("spec", "status") for path, _ in levels(schema_of(part), f".{part}")}
    for column in version["additionalPrinterColumns"]:
        if column["name"] != "Age":
            assert column["jsonPath"].replace('[?(@.type=="Ready")]', "") in paths


def test_the_reference_names_every_field() -> None:
    text = REFERENCE.read_text()
    for part in ("spec", "status"):
        for path, _ in levels(schema_of(part), part):
            if ".affinity." in path:
                continue  # as in a pod's spec: the page says so, kubectl explain shows them
            assert path in (part,) or path.endswith(("[]", "{}")) or f"`{path}`" in text, path


def test_the_schema_version_is_an_annotation() -> None:
    annotations = crd.definition()["metadata"]["annotations"]
    assert annotations == {"premoe.dev/schema": str(crd.SCHEMA_VERSION), "helm.sh/resource-policy": "keep"}


def test_a_changed_schema_needs_a_new_version() -> None:
    """The digest belongs to the version: change both, and the version only upwards."""
    parts = {part: undocumented(schema_of(part)) for part in ("spec", "status")}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    assert (crd.SCHEMA_VERSION, digest) == (11, "8fa474b918753b8f")


def undocumented(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: undocumented(value) for key, value in schema.items() if key != "description"}
    return [undocumented(item) for item in schema] if isinstance(schema, list) else schema
