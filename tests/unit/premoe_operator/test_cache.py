"""The cache: newer versions win, removals are remembered, and it says whom news concern."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from premoe_operator.kube import cache as cache_module
from premoe_operator.kube.cache import Cache
from premoe_operator.kube.cluster import Listed
from premoe_operator.kube.kinds import PRUNED_MODEL, SERVICE
from premoe_operator.kube.objects import Json, ModelKey, ObjectKey

CHAT = ModelKey("a", "chat")
KEY = ObjectKey(SERVICE, "a", "chat-worker")


def service(version: int, **labels: str) -> Json:
    metadata = {"namespace": "a", "name": "chat-worker", "uid": "u", "resourceVersion": str(version)}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**metadata, "labels": {"premoe.dev/model": "chat", **labels}, "managedFields": [{}]},
    }


def model(name: str, version: int = 1, served: str = "") -> Json:
    return {
        "apiVersion": PRUNED_MODEL.api_version,
        "kind": PRUNED_MODEL.name,
        "metadata": {"namespace": "a", "name": name, "uid": name, "resourceVersion": str(version)},
        "spec": {"model": {"servedName": served}},
    }


def test_only_newer_versions_are_news() -> None:
    cache = Cache()
    assert cache.put(service(5)) == {CHAT}
    assert cache.put(service(5)) == set()
    assert cache.put(service(4)) == set()
    assert cache.put(service(6)) == {CHAT}
    assert "managedFields" not in cache.children(CHAT)[KEY]["metadata"]


def test_a_late_answer_does_not_bring_a_deleted_object_back() -> None:
    cache = Cache()
    cache.put(service(5))
    assert cache.remove(KEY, 7) == {CHAT}
    assert cache.put(service(6)) == set()
    assert cache.children(CHAT) == {}
    assert cache.put(service(8)) == {CHAT}


def test_a_late_removal_does_not_remove_the_next_object() -> None:
    cache = Cache()
    cache.put(service(9))
    assert cache.remove(KEY, 7) == set()
    assert cache.get(KEY) is not None


def test_an_object_whose_label_was_stripped_can_be_read_again() -> None:
    cache = Cache()
    cache.put(service(5))
    cache.remove(KEY, 6)  # the watch with a label selector says DELETED, at the version without the label
    assert cache.put(service(6)) == {CHAT}


def test_a_list_drops_what_is_gone_but_not_what_is_newer() -> None:
    cache = Cache()
    cache.put(service(5))
    assert cache.replace(SERVICE, None, Listed((), version=4)) == set()
    assert cache.replace(SERVICE, "b", Listed((), version=9)) == set()
    assert cache.replace(SERVICE, "a", Listed((), version=9)) == {CHAT}
    assert cache.get(KEY) is None


def test_models_with_one_served_name_concern_each_other() -> None:
    cache = Cache()
    cache.put(model("one", served="x"))
    assert cache.put(model("two", served="x")) == {ModelKey("a", "one"), ModelKey("a", "two")}
    assert [other["metadata"]["name"] for other in cache.rivals(ModelKey("a", "one"))] == ["two"]
    assert cache.put(model("two", 2)) == {ModelKey("a", "one"), ModelKey("a", "two")}
    assert cache.rivals(ModelKey("a", "one")) == []
    cache.put(model("x"))
    assert [other["metadata"]["name"] for other in cache.rivals(ModelKey("a", "one"))] == ["x"]
    assert cache.remove(ObjectKey(PRUNED_MODEL, "a", "x"), 5) == {ModelKey("a", "one"), ModelKey("a", "x")}


def test_tombstones_are_bounded() -> None:
    cache = Cache()
    for number in range(cache_module.TOMBSTONES + 10):
        cache.remove(ObjectKey(SERVICE, "a", str(number)), number)
    assert len(cache._removed) == cache_module.TOMBSTONES


@given(st.permutations([("put", 3), ("put", 5), ("remove", 7), ("put", 9)]))
def test_any_order_of_arrival_ends_at_the_newest(order: list[tuple[str, int]]) -> None:
    cache = Cache()
    for what, version in order:
        if what == "put":
            cache.put(service(version))
        else:
            cache.remove(KEY, version)
    found = cache.get(KEY)
    assert found is not None
    assert found["metadata"]["resourceVersion"] == "9"


def claiming(name: str, version: int = 1, pack: str = "blake3:00", budget: str = "4/8", task: str = "add") -> Json:
    found = model(name, version)
    found["spec"] |= {"budget": budget, "patterns": {"tasks": [{"name": task}] if task else []}}
    return {**found, "status": {"resolved": {"modelId": pack}}}


def test_models_of_the_same_weights_hear_of_each_others_wishes_only() -> None:
    first, second, third = (ModelKey("a", name) for name in ("first", "second", "third"))
    cache = Cache()
    cache.put(claiming("first"))
    assert cache.put(claiming("second")) == {first, second}
    assert cache.put(claiming("second", version=2)) == {second}
    assert cache.put(claiming("third", pack="blake3:11")) == {third}
    assert [found["metadata"]["name"] for found in cache.same_weights(first)] == ["second"]
    assert cache.put(claiming("second", version=3, budget="2/8")) == {first, second}
    assert cache.put(claiming("second", version=4, task="")) == {first, second}
    assert cache.same_weights(first) == []
    cache.put(claiming("second", version=5))
    assert cache.remove(ObjectKey(PRUNED_MODEL, "a", "second"), 6) == {first, second}
