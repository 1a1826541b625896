"""Objects in the cache: equal to what the API server sent but for managedFields, with equal parts in memory once."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from premoe_operator.kube.compact import compact
from premoe_operator.kube.objects import Json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def pod(name: str, **status: str) -> Json:
    text = json.dumps(
        {
            "metadata": {"name": name, "labels": {"app": "worker"}, "managedFields": [{"manager": "somebody"}]},
            "spec": {"containers": [{"name": "worker", "ports": [{"containerPort": 9000}]}]},
            "status": {"phase": "Running", **status},
        }
    )
    decoded: Json = json.loads(text)
    return decoded


def test_pods_of_one_template_share_it() -> None:
    one = compact(pod("one"), None)
    two = compact(pod("two", podIP="10.0.0.2"), one)
    assert two["spec"] is one["spec"]
    assert two["metadata"]["labels"] is one["metadata"]["labels"]
    assert one["metadata"] == {"name": "one", "labels": {"app": "worker"}}
    assert two["metadata"] == {"name": "two", "labels": {"app": "worker"}}
    assert two["status"] == {"phase": "Running", "podIP": "10.0.0.2"}
    assert one["status"] == {"phase": "Running"}


def test_equal_strings_are_shared_with_every_object() -> None:
    one, two = compact(pod("one"), None), compact(pod("one"), None)
    assert one["metadata"]["name"] is two["metadata"]["name"]


@given(VALUES, VALUES)
def test_what_is_kept_is_what_was_sent(value: Any, like: Any) -> None:
    sent = {"metadata": {"name": "a"}, "spec": value}
    kept = compact(sent, compact({"metadata": {"name": "b"}, "spec": like}, None))
    # The text tells 1 from True, which are equal.
    assert json.dumps(kept) == json.dumps(sent)


@given(VALUES)
def test_an_equal_object_is_the_one_before(value: Any) -> None:
    before = compact({"metadata": {"name": "a"}, "spec": value}, None)
    after = compact(json.loads(json.dumps(before)), before)
    assert json.dumps(after) == json.dumps(before)
    if isinstance(value, dict | list):
        assert after["spec"] is before["spec"]
