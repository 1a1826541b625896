"""The podTemplate hatch: merged where allowed, refused in one sentence elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from premoe_operator import children
from premoe_operator.api.names import LABEL_SPEC_HASH
from support.pruned_models import SMALLEST, changed, inputs_of

from premoe_runtime.formats.errors import InvalidInput

ALLOWED = ["metadata", "spec.affinity", "spec.containers[premoe-worker].env", "spec.initContainers", "spec.volumes"]


def refusals(patch: Any, allowed: list[str]) -> tuple[str, ...]:
    release = {"podTemplate": {"allowedPaths": allowed}}
    return children.pod_template_refusals(inputs_of(changed(SMALLEST, {"podTemplate": patch}), release=release))


def merged(patch: Any) -> Any:
    release = {"podTemplate": {"allowedPaths": ALLOWED}}
    return children.worker_template(inputs_of(changed(SMALLEST, {"podTemplate": patch}), release=release))


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"spec": {"hostNetwork": True}}, "spec.hostNetwork is not among what this release allows"),
        ({"spec": {"affinityX": {}}}, "spec.affinityX is not among"),
        (
            {"spec": {"containers": [{"name": "premoe-worker", "image": "x"}]}},
            r"spec.containers\[premoe-worker\].image",
        ),
        ({"spec": {"containers": [{"name": "other", "env": []}]}}, r"spec.containers\[other\].env must be a list"),
        (
            {"spec": {"containers": [{"name": "premoe-worker].env.x", "image": "evil"}]}},
            "spec.containers must be a list of items with names",
        ),
        ({"spec": {"containers": {"name": "premoe-worker"}}}, "spec.containers.name is not among"),
        ({"spec": {"containers": [{"image": "x"}]}}, "spec.containers must be a list of items with names"),
        ({"spec": {"volumes": "all"}}, "spec.volumes must be a list of items with names"),
        ({"metadata": {"labels": {"premoe.dev/model": "x"}}}, "premoe.dev/model is the operator's own label"),
        ({"metadata": {"labels": {"app.kubernetes.io/name": "x"}}}, "app.kubernetes.io/name is the operator's own"),
        ({"metadata": {"labels": None}}, "metadata.labels must be an object"),
        ({"metadata": []}, "metadata must be an object"),
        ({"spec": {"affinity": {"note": "x" * 20_000}}}, "has 20..* bytes; at most 16384 are allowed"),
    ],
)
def test_what_is_not_listed_is_refused(patch: Any, message: str) -> None:
    (refusal,) = refusals(patch, ALLOWED)
    assert refusal.startswith("spec.podTemplate")
    with pytest.raises(InvalidInput, match=message) as caught:
        merged(patch)
    assert (str(caught.value), caught.value.reason) == (refusal, "POD_TEMPLATE_REFUSED")


def test_every_refused_path_is_named() -> None:
    patch = {"spec": {"hostNetwork": True, "hostPID": True, "affinity": {}}}
    assert [text.split(" ")[1] for text in refusals(patch, ALLOWED)] == ["spec.hostNetwork", "spec.hostPID"]


def test_the_hatch_is_off_without_a_list() -> None:
    (refusal,) = refusals({"spec": {"affinity": {}}}, [])
    assert refusal == "spec.podTemplate is off in this release; its administrator lists what it may set"
    assert refusals({}, []) == ()


def test_lists_with_names_merge_and_others_are_replaced() -> None:
    plain = children.worker_template(inputs_of(SMALLEST))
    template = merged(
        {
            "metadata": {"labels": {"team": "search"}, "annotations": {"note": "x"}},
            "spec": {
                "affinity": {"nodeAffinity": {"terms": [1, 2]}},
                "containers": [{"name": "premoe-worker", "env": [{"name": "HOME", "value": "/x"},
                                                                  {"name": "NEW", "value": "1"}]}],
                "volumes": [{"name": "more", "emptyDir": {}}],
                "initContainers": [{"name": "first", "image": "registry.test/first:1"}],
            },
        }
    )  # fmt: skip
    assert template["metadata"]["labels"].items() >= {"team": "search", "premoe.dev/model": "mixtral"}.items()
    assert template["metadata"]["annotations"]["note"] == "x"
    assert template["spec"]["affinity"] == {"nodeAffinity": {"terms": [1, 2]}}
    assert template["spec"]["initContainers"] == [{"name": "first", "image": "registry.test/first:1"}]
    assert template["spec"]["volumes"] == [*plain["spec"]["volumes"], {"name": "more", "emptyDir": {}}]
    (container,), (before,) = template["spec"]["containers"], plain["spec"]["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    assert (env["HOME"], env["NEW"], len(env)) == ("/x", "1", len(before["env"]) + 1)
    assert {**container, "env": None} == {**before, "env": None}


def test_nothing_else_changes_and_the_plain_template_is_left_alone() -> None:
    plain = children.worker_template(inputs_of(SMALLEST))
    patched = merged({"spec": {"affinity": {"a": 1}}})
    del patched["spec"]["affinity"]
    del patched["metadata"]["labels"][LABEL_SPEC_HASH], plain["metadata"]["labels"][LABEL_SPEC_HASH]
    assert patched == plain
