"""Another model under a name that serves, on a real API server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.cluster_fixtures import control_plane, create_namespace, delete_namespace
from support.control_plane import ControlPlane
from support.operator_process import (
    FACTS,
    MODEL_ID,
    Kubelet,
    Site,
    make_site,
    pruned_model,
    running_operator,
    wait,
)

__all__ = ["control_plane"]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

NEW_ID = "blake3:" + "cd" * 32


@pytest.fixture(scope="module")
def site(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A namespace with a running operator, which all tests share."""
    name = create_namespace(control_plane, "change")
    values = ("worker.drain.preStopSeconds=1", "worker.drain.delaySeconds=1")
    site = make_site(control_plane, name, tmp_path_factory.mktemp("change"), values=values)
    site.set_facts({MODEL_ID: FACTS, NEW_ID: FACTS})
    with running_operator(site):
        yield site
    delete_namespace(control_plane, name)


def serve(site: Site, name: str, model_id: str = MODEL_ID) -> None:
    kubelet = Kubelet(site)
    kubelet.end(kubelet.wait_for_pods(name, "pack")[0], {"modelId": model_id})
    kubelet.serve(name)
    site.wait_for(name, "Ready", "True")


def pods(site: Site, name: str) -> list[str]:
    return sorted(pod["metadata"]["uid"] for pod in Kubelet(site).pods(name, "worker"))


def serving(site: Site, name: str) -> tuple[str, str]:
    status = site.model(name)["status"]
    return status["servingModelId"], status["resolved"]["modelId"]


def test_a_served_name_passes_on_and_back(site: Site) -> None:
    """Never a moment without a ready worker."""
    kubelet = Kubelet(site)
    source = pruned_model("x")["spec"]["model"]
    site.create("prunedmodels", pruned_model("blue", model={**source, "servedName": "chat"}))
    serve(site, "blue")
    site.create("prunedmodels", pruned_model("red", model={**source, "servedName": "chat"}))
    assert "takesOverFrom" in site.wait_for("red", "SpecAccepted", "False", "ServedNameConflict")["message"]
    site.delete("prunedmodels", "red")
    green = {**source, "servedName": "chat", "takesOverFrom": "blue"}
    site.create("prunedmodels", pruned_model("green", model=green))
    kubelet.end(kubelet.wait_for_pods("green", "pack")[0], {"modelId": MODEL_ID})
    kubelet.wait_for_pods("green", "worker")
    assert site.condition("blue", "Available")["status"] == "True"
    kubelet.serve("green")
    site.wait_for("green", "Ready", "True", "AllReady")
    site.wait_for("blue", "Available", "False", "HandedOver")
    assert site.condition("green", "Available")["status"] == "True"
    assert site.model("blue")["status"]["handedOver"]["uid"] == site.model("green")["metadata"]["uid"]
    wait(lambda: not pods(site, "blue"), 60, lambda: str(pods(site, "blue")))

    site.patch("prunedmodels", "green", {"spec": {"model": {"takesOverFrom": None}}})
    kubelet.serve("blue")
    site.wait_for("blue", "Ready", "True", "AllReady")
    assert site.condition("green", "Available")["status"] == "True"
    site.delete("prunedmodels", "green")
    assert site.condition("blue", "Available")["status"] == "True"


def test_another_revision_fails_beside_what_serves_then_replaces_it(site: Site) -> None:
    kubelet = Kubelet(site)
    site.create("prunedmodels", pruned_model("moves"))
    serve(site, "moves")
    before = pods(site, "moves")
    site.patch("prunedmodels", "moves", {"spec": {"model": {"revision": "1" * 40}}})
    words = {"reason": "SOURCE_NOT_FOUND", "message": "hf://premoe/tiny-moe has no revision 1111"}
    kubelet.end(kubelet.wait_for_pods("moves", "pack")[0], words, exit_code=3)
    found = site.wait_for("moves", "Ready", "False", "PackFailed")
    assert found["message"] == f"{words['message']}; workers serve {MODEL_ID} meanwhile"
    assert (pods(site, "moves"), serving(site, "moves")) == (before, (MODEL_ID, MODEL_ID))

    site.patch("prunedmodels", "moves", {"spec": {"model": {"revision": "2" * 40}}})
    kubelet.end(kubelet.wait_for_pods("moves", "pack")[0], {"modelId": NEW_ID})
    both = kubelet.wait_for_pods("moves", "worker", 2)
    assert {pod["metadata"]["uid"] for pod in both} > set(before)  # the old one serves until the new one is ready
    # The status follows the pods, in the write after them.
    wait(lambda: serving(site, "moves") == (MODEL_ID, NEW_ID), 60, lambda: str(site.model("moves")["status"]))
    kubelet.serve("moves")
    wait(lambda: serving(site, "moves") == (NEW_ID, NEW_ID), 60, lambda: str(site.model("moves")["status"]))
    site.wait_for("moves", "Ready", "True", "AllReady")
    assert not set(before) & set(pods(site, "moves"))
