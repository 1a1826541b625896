"""Which wanted fields an object lacks, and whose it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_operator.api.names import ANNOTATION_APPLIED, ANNOTATION_OWNER
from premoe_operator.decide.difference import difference
from premoe_operator.kube.objects import Json, ownership, stamped

OWNER: Json = {"metadata": {"name": "chat", "namespace": "a", "uid": "u1"}}


def owned(uid: str = "u1", kind: str = "PrunedModel", name: str = "chat", **annotations: str) -> Json:
    reference = {"kind": kind, "name": name, "uid": uid, "controller": True}
    return {"metadata": {"name": "x", "ownerReferences": [reference], "annotations": annotations}}


@pytest.mark.parametrize(
    ("wanted", "observed", "path"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, ""),
        ({"a": 1}, {"a": 2}, "a"),
        ({"a": {"b": 1}}, {"a": {}}, "a.b"),
        ({"a": {}, "b": [], "c": "", "d": 0, "e": False}, {}, ""),
        ({"a": False}, {"a": True}, "a"),
        ({"limits": {"cpu": "1000m"}}, {"limits": {"cpu": "1"}}, ""),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "1G"}}, "limits.memory"),
        ({"labels": {"a": "1.0"}}, {"labels": {"a": "1"}}, "labels.a"),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "B"}, {"name": "A", "value": "1"}]}, ""),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "B"}]}, "env.A"),
        ({"args": ["a"]}, {"args": ["a", "b"]}, "args"),
        ({"spec": {"ports": [{"port": 1}]}}, {"spec": {"ports": [{"port": 2}, {"port": 1}]}}, ""),
        (
            {"ingress": [{"ports": [{"port": 1}]}]},
            {"ingress": [{"ports": [{"port": 1}, {"port": 2}]}]},
            "ingress.0.ports",
        ),
        ({"selector": {"a": "1"}}, {"selector": {"a": "1", "b": "2"}}, "selector"),
        ({"podSelector": {}}, {"podSelector": {"matchLabels": {"a": "1"}}}, "podSelector"),
        ({"a": {"b": 1}}, {"a": "text"}, "a"),
        ({"a": [1]}, {"a": "text"}, "a"),
    ],
)
def test_difference(wanted: Json, observed: Json, path: str) -> None:
    assert difference(wanted, observed) == path


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES)
def test_nothing_differs_from_itself(value: Any) -> None:
    assert difference(value, value) == ""


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.text(min_size=6, max_size=8), VALUES)
def test_what_others_add_is_no_difference(wanted: Json, name: str, value: Any) -> None:
    assert difference(wanted, {**wanted, name: value}) == ""


@pytest.mark.parametrize(
    ("obj", "whose"),
    [
        (owned(), "ours"),
        (owned("u0"), "predecessor"),
        (owned("u0", kind="ReplicaSet"), "foreign"),
        (owned("u0", name="other"), "foreign"),
        ({"metadata": {"name": "x"}}, "foreign"),
        ({"metadata": {"name": "x", "annotations": {ANNOTATION_OWNER: "u1"}}}, "stripped"),
        ({"metadata": {"name": "x", "annotations": {ANNOTATION_OWNER: "u0"}}}, "foreign"),
    ],
)
def test_ownership(obj: Json, whose: str) -> None:
    assert ownership(obj, OWNER) == whose


def test_a_stamp_names_owner_and_content() -> None:
    child = {"kind": "Service", **owned()}
    first, second = stamped(child), stamped({**child, "spec": {"a": 1}})
    assert first["metadata"]["annotations"][ANNOTATION_OWNER] == "u1"
    assert first["metadata"]["annotations"][ANNOTATION_APPLIED] != second["metadata"]["annotations"][ANNOTATION_APPLIED]
    assert child == {"kind": "Service", **owned()}


def test_a_child_without_owner_is_never_sent() -> None:
    with pytest.raises(ValueError, match="has no owner"):
        stamped({"kind": "Service", "metadata": {"name": "x"}})
