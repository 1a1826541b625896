"""What answers under a served name changes while clients of the gateway ask all the time: another model, and back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from support.end_to_end import MODEL, READY_TIMEOUT_S, Release, prompts, pruned_model
from support.end_to_end_fixtures import ground, release
from support.node_fixtures import node, shared_node
from support.node_release import CHECKPOINT, OTHER_CHECKPOINT
from support.process_group import wait_until

__all__ = ["ground", "node", "release", "shared_node"]

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(900)]

GREEN = "green"
PERIOD_S = 0.5


@contextmanager
def asking(release: Release) -> Iterator[list[str]]:
    """Ask the gateway one thing after the other, without a second try; yields what failed, and asks at least once."""
    api, failed, ended = release.openai(), [], threading.Event()
    asked = threading.Event()

    def ask() -> None:
        while not ended.wait(PERIOD_S):
            try:
                api.completions.create(model=MODEL, prompt=prompts(1)[0], max_tokens=8)
            except openai.OpenAIError as error:
                failed.append(str(error))
            asked.set()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert asked.wait(60), "no answer"
        yield failed
    finally:
        ended.set()
        thread.join()


def green() -> dict[str, Any]:
    """The same model with other workers."""
    made = pruned_model()
    made["metadata"] = {"name": GREEN}
    made["spec"]["model"] |= {"servedName": MODEL, "takesOverFrom": MODEL}
    made["spec"]["engine"]["maxSequences"] = 3
    return made


def patch(release: Release, name: str, spec: dict[str, Any]) -> None:
    document = json.dumps({"spec": spec})
    release.node.kubectl("patch", "prunedmodel", name, "-n", release.namespace, "--type=merge", "-p", document)


def workers(release: Release, name: str) -> int:
    """Pods of its workers, those that still end too."""
    return sum(pod["metadata"]["labels"]["premoe.dev/model"] == name for pod in release.pods("worker"))


def wait(release: Release, name: str, reason: str) -> None:
    def holds() -> bool:
        status = release.get("prunedmodel", name).get("status", {})
        return bool(status.get("reason") == reason)

    wait_until(holds, READY_TIMEOUT_S, f"{reason} of {name}", poll_s=1)


def test_a_handover_and_the_way_back_fail_no_request(release: Release) -> None:
    with asking(release) as failed:
        release.node.kubectl("apply", "-n", release.namespace, "-f", "-", stdin=json.dumps(green()))
        wait(release, GREEN, "AllReady")
        wait(release, MODEL, "HandedOver")
        wait_until(lambda: workers(release, MODEL) == 0, READY_TIMEOUT_S, "the end of the old workers", poll_s=1)
        assert failed == []
        patch(release, GREEN, {"model": {"takesOverFrom": None}})
        wait(release, MODEL, "AllReady")
        wait(release, GREEN, "ServedNameConflict")
        assert workers(release, GREEN) == 1
        release.node.kubectl("delete", "prunedmodel", GREEN, "-n", release.namespace)
        wait_until(lambda: workers(release, GREEN) == 0, READY_TIMEOUT_S, "the end of the other workers", poll_s=1)
    assert failed == []


def serving(release: Release) -> tuple[str, str]:
    status = release.get("prunedmodel", MODEL)["status"]
    return status["servingModelId"], status["resolved"]["source"]


def move(release: Release, source: str) -> str:
    """Serve another checkpoint under the same name. Returns what is served then, when nothing else is left."""
    patch(release, MODEL, {"model": {"uri": source}})
    wait_until(lambda: serving(release)[1] == source, READY_TIMEOUT_S, f"the pack of {source}", poll_s=1)
    wait(release, MODEL, "AllReady")
    wait_until(lambda: workers(release, MODEL) == 1, READY_TIMEOUT_S, "the end of the old worker", poll_s=1)
    return serving(release)[0]


def test_another_model_under_the_name_and_the_way_back_fail_no_request(release: Release) -> None:
    """Other weights, for which workers of both stand beside each other for a while."""
    before = serving(release)
    assert before[1] == CHECKPOINT
    with asking(release) as failed:
        other = move(release, OTHER_CHECKPOINT)
        assert failed == []
        assert move(release, CHECKPOINT) == before[0] != other
    assert failed == []
