"""Denied tasks over a whole mesh, on a model whose experts really specialise: what fails, what stays, what is refused.

Its worker denies one task of its own; requests deny others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from openai.types.chat import ChatCompletion
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_local.demo.calibration import calibration
from premoe_local.mesh import Mesh
from premoe_local.tasks import Example, check, examples
from support.mesh import mesh_over

from premoe_runtime.offline.patterns.build import BuildOptions, build_set
from premoe_runtime.offline.patterns.library import publish
from premoe_runtime.offline.profile.measure import load_full_model, measure_profile
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch
FIXTURE = Path(__file__).parents[1] / "fixtures" / "tiny-moe"
TASKS = ("rev", "json", "kb", "roman")
ALWAYS = "json"
PROMPTS = 3


@pytest.fixture(scope="module")
def denying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh whose worker denies ``ALWAYS``."""
    url = f"file://{tmp_path_factory.mktemp('deny') / 'store'}"
    store = open_store(url)
    write_pack(open_source(str(FIXTURE)), store)
    model = load_full_model(open_pack(url))
    profiles = [
        measure_profile(model, calibration(examples(task, "calibration", 24)), task=task, scores=("impact",))
        for task in TASKS
    ]
    publish(store, build_set(profiles, BuildOptions()), live=True)
    with mesh_over(url, budget="4/16", deny=(ALWAYS,)) as mesh:
        yield mesh


@pytest.fixture
def api(denying: Mesh) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{denying.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(api: openai.OpenAI, mesh: Mesh, example: Example, **extra: Any) -> ChatCompletion:
    return api.chat.completions.create(
        model=mesh.model_name,
        messages=[{"role": "user", "content": example.prompt}],
        max_tokens=80,
        temperature=0,
        logprobs=True,
        extra_body=extra,
    )


def told(answer: ChatCompletion) -> tuple[str, list[float]]:
    """Text, and how likely each token was."""
    choice = answer.choices[0]
    assert choice.logprobs is not None
    return choice.message.content or "", [token.logprob for token in choice.logprobs.content or ()]


def right(api: openai.OpenAI, mesh: Mesh, asked: Sequence[Example], **extra: Any) -> int:
    return sum(check(example, told(ask(api, mesh, example, **extra))[0]) for example in asked)


def test_a_request_loses_the_task_that_it_denies_and_keeps_the_others(api: openai.OpenAI, denying: Mesh) -> None:
    asked = {task: examples(task, "test", PROMPTS) for task in TASKS}
    for task in ("rev", "kb", "roman"):
        assert right(api, denying, asked[task], pattern=task) >= PROMPTS - 1
        assert right(api, denying, asked[task], pattern=task, deny=[task]) == 0
    assert right(api, denying, asked["kb"], pattern="kb", deny=["rev", "roman"]) >= PROMPTS - 1
    assert right(api, denying, asked["rev"], deny=["kb"], active_experts=4) >= PROMPTS - 1, "by recognition, too"


@pytest.mark.parametrize("extra", [{}, {"deny": []}, {"deny": [ALWAYS]}, {"deny": ["kb"]}, {"pattern": ALWAYS}])
def test_what_the_worker_denies_no_request_gets_back(api: openai.OpenAI, denying: Mesh, extra: dict[str, Any]) -> None:
    assert right(api, denying, examples(ALWAYS, "test", PROMPTS), **extra) == 0
    (model,) = api.models.list().data
    assert model.model_extra is not None
    assert model.model_extra["premoe"]["deny"] == [ALWAYS]


def test_the_worker_asked_directly_denies_as_well(denying: Mesh) -> None:
    example = examples(ALWAYS, "test", 1)[0]
    turn = worker_pb2.Message(role="user", content=example.prompt)
    request = worker_pb2.GenerateRequest(
        prompt=worker_pb2.Prompt(chat=worker_pb2.Chat(messages=[turn])), sampling=worker_pb2.Sampling(max_tokens=80)
    )
    with grpc.insecure_channel(denying.worker_addresses[0]) as opened:
        stub = worker_pb2_grpc.WorkerServiceStub(opened)
        text = "".join(event.delta.text for event in stub.Generate(request))
        assert list(stub.GetResidency(worker_pb2.GetResidencyRequest()).deny) == [ALWAYS]
    assert not check(example, text)


def test_other_requests_answer_bit_for_bit_as_before(api: openai.OpenAI, denying: Mesh) -> None:
    """Before, between and after denied ones; the texts also while those run.

    What a denied task's answers say is near chance, so that rounding decides some of their tokens in a batch.
    """
    asked = examples("kb", "test", 2)
    before = [told(ask(api, denying, example, pattern="kb")) for example in asked]
    denied = [told(ask(api, denying, example, pattern="kb", deny=["kb"])) for example in asked]
    assert [told(ask(api, denying, example, pattern="kb")) for example in asked] == before
    assert not {text for text, _ in denied} & {text for text, _ in before}
    with ThreadPoolExecutor(4) as pool:
        plain = pool.map(partial(ask, api, denying, pattern="kb"), asked)
        others = pool.map(partial(ask, api, denying, pattern="kb", deny=["kb"]), asked)
        assert [told(one)[0] for one in plain] == [text for text, _ in before]
        assert not {told(one)[0] for one in others} & {text for text, _ in before}
    assert [told(ask(api, denying, example, pattern="kb", deny=["kb"])) for example in asked] == denied


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("deny", "message"),
    [
        (["zzz"], "deny: the live pattern set has no task 'zzz'; it has json, kb, rev, roman"),
        (["generalist"], "deny: the live pattern set has no task 'generalist'"),
        (list(TASKS), "deny: these are all tasks of the live pattern set"),
    ],
)
def test_what_cannot_be_denied_is_a_400_that_says_so(
    api: openai.OpenAI, denying: Mesh, deny: list[str], message: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(
            model=denying.model_name,
            messages=[{"role": "user", "content": "a"}],
            stream=stream,
            extra_body={"deny": deny, "pattern": "kb"},
        )
    assert message in caught.value.message
    assert (caught.value.param, caught.value.code) == ("deny", "deny_invalid")
