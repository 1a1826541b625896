"""Values: misspelt and contradictory ones are refused in one clear line, and the schema knows every value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from crd import SCHEMA_VERSION
from support.charts import (
    CHART,
    PROFILES,
    HelmFailed,
    helm,
    merged,
    named,
    notes_of,
    render,
    values_arguments,
    values_file,
    values_of,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FREE = {"type": "object"}


@pytest.mark.parametrize("profile", PROFILES)
def test_lint_is_content(profile: str) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), "--values", str(values_file(profile)))


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("gateway.replica", "replica"),
        ("typo", "typo"),
        ("retrieval.image.tags", "tags"),
        ("tls.issuerRef.nam", "nam"),
        ("qdrant.trial.enable", "enable"),
        ("networkPolicy.egress.redi", "redi"),
        ("operator.serviceAccount.annotation", "annotation"),
        ("metrics.serviceMonitor.label", "label"),
        ("objectStore.existingSecrets", "existingSecrets"),
    ],
)
def test_a_misspelt_value_is_refused(path: str, word: str) -> None:
    with pytest.raises(HelmFailed, match=f"additional properties '{word}' not allowed"):
        render(CHART, merged(values_of("plain"), nested(path, "x")))


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("tls.mode", "Mutual", "tls/mode"),
        ("logLevel", "trace", "logLevel"),
        ("guests", [{"release": "other"}], "guests/0"),
        ("guests", [{"release": "other", "namespace": "Team"}], "guests/0/namespace"),
        ("guests", [{"release": "other", "namespace": "team", "workers": []}], "guests/0"),
        ("listenAddress", "localhost", "listenAddress"),
        ("clusterDomain", "Cluster.local", "clusterDomain"),
        ("tls.checkRoles", "yes", "tls/checkRoles"),
        ("tls.duration", "90d", "tls/duration"),
        ("networkPolicy.egress.identity", [{"tos": []}], "networkPolicy/egress/identity"),
        ("gateway.replicas", "two", "gateway/replicas"),
        ("worker.image.tag", "latest", "worker/image/tag"),
        ("worker.vllmImage.tag", "latest", "worker/vllmImage/tag"),
        ("operator.image.digest", "sha256:123", "operator/image/digest"),
        ("tracing.sampleRatio", "1.5", "tracing/sampleRatio"),
        ("tracing.endpoint", "collector:4317", "tracing/endpoint"),
        ("watchNamespaces", ["a", "a"], "watchNamespaces"),
        ("watchNamespaces", ["Team A"], "watchNamespaces"),
        ("tests.modelId", "chat", "tests/modelId"),
        ("podTemplate.allowedPaths", ["hostNetwork"], "podTemplate/allowedPaths"),
        ("gateway.service.port", 0, "gateway/service/port"),
        ("gateway.ingress.hosts", ["https://models.example"], "gateway/ingress/hosts"),
        ("gateway.keys.key", "a/b", "gateway/keys/key"),
        ("gateway.httpRoute.parentRefs", ["public"], "gateway/httpRoute/parentRefs"),
    ],
)
def test_a_wrong_value_is_refused_by_the_schema(path: str, value: object, complaint: str) -> None:
    with pytest.raises(HelmFailed, match=complaint):
        render(CHART, merged(values_of("plain"), nested(path, value)))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"objectStore": {"url": ""}},
            "objectStore.url is empty: name the object store, for example s3://bucket/prefix",
        ),
        ({"objectStore": {"url": "memory://x"}}, "objectStore.url is memory://: processes of several pods do not"),
        ({"tls": {"mode": "CertManager"}}, "tls.issuerRef.name is empty: name a cert-manager issuer, or set tls.mode"),
        ({"tls": {"mode": "Secret"}}, "tls.mode is Secret and tls.secretName is empty: name a Secret with tls.crt"),
        ({"tls": {"duration": "24h"}}, "tls.renewBefore is 720h: it must be less than tls.duration (24h)"),
        ({"retrieval": {"replicas": 2}}, "retrieval.replicas is 2, but the embedded Qdrant allows one: set qdrant.url"),
        (
            {"qdrant": {"url": "http://q:6333", "trial": {"enabled": True}}},
            "qdrant.url and qdrant.trial.enabled exclude each other",
        ),
        ({"gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.hosts is empty: name the host"),
        ({"gateway": {"httpRoute": {"enabled": True}}}, "gateway.httpRoute.parentRefs is empty: name the Gateway"),
        (
            {"gateway": {"terminationGracePeriodSeconds": 35}},
            "gateway.terminationGracePeriodSeconds is 35: it must be more than drain.delaySeconds and "
            "drain.graceSeconds together (35)",
        ),
    ],
)
def test_values_that_do_not_fit_together_are_refused_in_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(HelmFailed) as refused:
        render(CHART, merged(values_of("plain"), change))
    assert [line in found for found in str(refused.value).splitlines() if found.startswith("Error: ")] == [True]


def test_nothing_is_installed_without_a_decision_on_tls() -> None:
    with pytest.raises(HelmFailed, match=r"tls\.mode is CertManager and tls\.issuerRef\.name is empty"):
        render(CHART, {"objectStore": {"url": "s3://packs"}})


@pytest.mark.parametrize("change", [{"qdrant": {"url": "http://q:6333"}}, {"retrieval": {"index": "memory"}}])
def test_several_retrieval_replicas_with_an_index_of_their_own_or_a_server(change: dict[str, Any]) -> None:
    assert render(CHART, merged(merged(values_of("plain"), {"retrieval": {"replicas": 2}}), change))


def test_the_schema_knows_every_value_and_nothing_else() -> None:
    """Each closed level of the schema has exactly the keys of values.yaml, and each level of ours is closed."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    compared = dict(closed_levels(values, schema, schema["definitions"], ""))
    assert len(compared) > 40
    for path, (has, knows) in compared.items():
        assert has <= knows, path
        # Claims have no default: a number of devices is nobody's default. A parent chart's Helm writes "enabled".
        assert knows - has <= {"claims", "limits", *(["enabled"] if path == "/" else [])}, path


@pytest.mark.parametrize("profile", PROFILES)
def test_notes_say_what_was_installed_and_what_to_do_next(profile: str) -> None:
    notes = notes_of(values_of(profile))
    assert "helm --namespace serving test premoe" in notes
    assert f"{'https' if profile == 'full' else 'http'}://premoe-gateway.serving.svc" in notes


def test_notes_warn_of_what_is_unsafe() -> None:
    notes = notes_of(
        merged(
            values_of("plain"),
            {
                "networkPolicy": {"enabled": False},
                "qdrant": {"trial": {"enabled": True}},
                "gateway": {"ingress": {"enabled": True, "hosts": ["models.example"]}},
            },
        )
    )
    warnings = [line for line in notes.splitlines() if line.startswith("WARNING: ")]
    for start in (
        "tls.mode is Disabled",
        "networkPolicy.enabled is false",
        "qdrant.trial is one pod",
        "PreMoE's images",
        "The gateway can be reached from outside",
    ):
        assert any(line.startswith(f"WARNING: {start}") for line in warnings), start
    # The images are published nowhere: whoever installs must know before the pods say ImagePullBackOff.
    assert "premoe-worker:0.1.0" in notes


def test_notes_of_a_careful_installation_hold_no_warning() -> None:
    values = merged(
        values_of("secret"),
        {
            "global": {"imageRegistry": "registry.example"},
            # Without a cluster there is no definition to look at.
            "checkDefinition": False,
            "networkPolicy": {"ingress": {"gateway": [{"podSelector": {}}]}},
        },
    )
    (warning,) = [line for line in notes_of(values).splitlines() if "WARNING" in line]
    assert warning.startswith("WARNING: tls.checkRoles is true. Certificates that hold no URI premoe://premoe.serving/")
    assert "WARNING" not in notes_of(merged(values, {"tls": {"checkRoles": False}}))


def test_notes_warn_of_a_route_in_plain_http_to_a_port_that_speaks_https() -> None:
    route = {"httpRoute": {"enabled": True, "parentRefs": [{"name": "edge"}]}}
    values = merged(values_of("plain"), {"gateway": route})
    assert "BackendTLSPolicy" not in notes_of(values)
    notes = notes_of(merged(values, {"gateway": {"tls": {"existingSecret": "https"}}}))
    assert "WARNING: gateway.httpRoute leads to a port that speaks HTTPS" in notes
    assert "BackendTLSPolicy for the Service premoe-gateway" in notes


@pytest.mark.parametrize(
    ("spec", "is_refused"), [("{}", True), ("{uris: []}", True), ("{uris: [premoe://a/b]}", False)]
)
def test_roles_are_not_checked_before_certificates_hold_them(spec: str, is_refused: bool) -> None:
    """A Certificate as `lookup` finds it; there is no cluster here to look into."""
    found = f"{{metadata: {{name: premoe-gateway}}, spec: {spec}}}"
    values = values_of("full") | {"extraObjects": ['{{ include "premoe.validate.roles" (fromYaml "' + found + '") }}']}
    if is_refused:
        with pytest.raises(HelmFailed, match="Certificate premoe-gateway holds no role yet"):
            render(CHART, values)
    else:
        assert render(CHART, values)


def test_an_upgrade_without_a_cluster_to_look_into_is_rendered() -> None:
    given, stdin = values_arguments(values_of("full"))
    assert helm("template", "premoe", str(CHART), "--is-upgrade", *given, stdin=stdin)


def test_the_chart_names_the_schema_that_the_operator_was_built_with() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["annotations"]["premoe.dev/schema"] == str(SCHEMA_VERSION)


def nested(path: str, value: object) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def closed_levels(
    values: object, schema: dict[str, Any], definitions: dict[str, Any], path: str
) -> Iterator[tuple[str, tuple[set[str], set[str]]]]:
    """(path, (keys in values.yaml, keys in the schema)) of every level of ours."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if not isinstance(values, dict) or schema == FREE or isinstance(schema.get("additionalProperties"), dict):
        return
    # `global` belongs to all charts of an installation; everything else is ours alone.
    assert schema.get("additionalProperties") is False or path == "/global", path
    properties = schema["properties"]
    yield path or "/", (set(values), set(properties))
    for key, value in values.items():
        yield from closed_levels(value, properties[key], definitions, f"{path}/{key}")


@pytest.mark.parametrize(("value", "component"), [("expertStore", "expert-store"), ("gateway", "gateway")])
def test_an_autoscaler_may_own_the_number_of_pods(value: str, component: str) -> None:
    objects = render(CHART, merged(values_of("plain"), {value: {"replicas": None}}))
    assert "replicas" not in named(objects, "Deployment", f"premoe-{component}")["spec"]
    stopped = render(CHART, merged(values_of("plain"), {value: {"replicas": 0}}))
    assert named(stopped, "Deployment", f"premoe-{component}")["spec"]["replicas"] == 0
