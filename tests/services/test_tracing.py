"""One request is one trace across all four processes, with the spans and attributes that we promise."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_local.mesh import Mesh
from premoe_servicekit.clients import blocking_channel
from support.mesh import mesh_over, prompts
from support.otlp import Node, OtlpReceiver, otlp_receiver

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch

GENERATE = "premoe.worker.v1.WorkerService/Generate"
PROBE = "premoe.worker.v1.WorkerService/Probe"
RETRIEVE = "premoe.patterns.v1.PatternService/Retrieve"
RESOLVE = "premoe.experts.v1.ExpertStoreService/Resolve"
FETCH = "premoe.experts.v1.ExpertStoreService/Fetch"


@dataclass
class Traced:
    mesh: Mesh
    receiver: OtlpReceiver

    def tree(self, trace_id: str, *names: str) -> Node:
        """The one tree of the trace, once all processes have exported their part."""

        def complete(spans: object) -> bool:
            roots = self.receiver.roots(trace_id)
            return len(roots) == 1 and set(names) <= set(roots[0].names())

        self.receiver.wait(complete)
        return self.receiver.tree(trace_id)


@pytest.fixture(scope="module")
def traced(store_url: str) -> Iterator[Traced]:
    with otlp_receiver() as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with mesh_over(store_url) as mesh:
            yield Traced(mesh, receiver)


def children(node: Node) -> list[str]:
    return [child.span.name for child in node.children]


def check_generation(generate: Node) -> None:
    """What lies below the worker's own span of a Generate that had to swap."""
    swap = generate.find("swap")
    assert {"plan", "resolve", "fetch grpc"} <= set(children(swap))
    assert children(swap.find("resolve")) == [RESOLVE]
    fetch = swap.find("fetch grpc").find(FETCH)
    store_side = [node.span for node in fetch.walk() if node.span.service == "premoe-expert-store"]
    assert any(span.name != FETCH for span in store_side), str(fetch)
    moved = swap.span.attributes
    # Blobs of a pattern that gave way before may still be in host memory.
    assert moved["premoe.swap.source"] in ("store", "mixed")
    assert isinstance(moved["premoe.swap.experts_loaded"], int)
    assert moved["premoe.swap.experts_loaded"] > 0
    fetched = swap.find("fetch grpc").span.attributes
    assert fetched["premoe.fetch.bytes"] == fetched["premoe.fetch.bytes.object"]
    whole = moved["premoe.swap.source"] == "store"
    assert (fetched["premoe.fetch.bytes"] == moved["premoe.swap.bytes"]) is whole
    assert isinstance(moved["premoe.swap.duration"], float)
    assert isinstance(moved["premoe.swap.experts_evicted"], int)
    prefill, decode = generate.find("prefill").span, generate.find("decode").span
    assert swap.span.end <= prefill.start <= prefill.end == decode.start <= decode.end
    assert prefill.attributes["gen_ai.usage.input_tokens"] == 26
    assert decode.attributes["gen_ai.usage.output_tokens"] == generate.span.attributes["gen_ai.usage.output_tokens"]
    attributes = generate.span.attributes
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "qwen3_moe"
    assert attributes["premoe.retrieval.fallback"] is False
    assert attributes["premoe.expert_set.id"] == swap.span.attributes["premoe.expert_set.id"]
    assert isinstance(attributes["premoe.retained_mass"], float)


def check_retrieval(retrieve: Node) -> None:
    """What lies below the span of a retrieval: the RPC, and the index query in the other process."""
    assert retrieve.span.attributes["premoe.retrieval.fallback"] is False
    assert isinstance(retrieve.span.attributes["premoe.retrieval.score"], float)
    served = [node for node in retrieve.walk() if node.span.service == "premoe-retrieval"]
    assert served[0].span.name == RETRIEVE
    queries = [node.span for node in served if node.span.attributes.get("db.system.name") == "qdrant"]
    assert queries
    assert queries[0].attributes["db.operation.name"]
    assert queries[0].attributes["db.collection.name"]


def check_private(receiver: OtlpReceiver, prompt: str) -> None:
    """Prompts are nowhere in a trace."""
    everything = json.dumps([[span.name, span.attributes] for span in receiver.spans()])
    assert prompt not in everything


def test_generate_without_a_pattern_is_one_tree(traced: Traced) -> None:
    prompt = prompts("digits", 1, seed=7)[0]
    trace_id = secrets.token_hex(16)
    chat = worker_pb2.Chat(messages=[worker_pb2.Message(role="user", content=prompt)])
    request = worker_pb2.GenerateRequest(
        prompt=worker_pb2.Prompt(chat=chat), sampling=worker_pb2.Sampling(max_tokens=3)
    )
    with blocking_channel(traced.mesh.worker_addresses[0]) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        traceparent = f"00-{trace_id}-{secrets.token_hex(8)}-01"
        events = list(stub.Generate(request, metadata=(("traceparent", traceparent),)))
    assert events[0].started.pattern.task == "digits"
    tree = traced.tree(trace_id, "decode", "qdrant query", "fetch object")
    assert (tree.span.name, tree.span.service) == (GENERATE, "premoe-worker")
    assert [name for name in children(tree) if not name.startswith("premoe.")] == [
        "probe",
        "retrieve",
        "swap",
        "prefill",
        "decode",
    ]
    assert tree.find("probe").span.attributes["premoe.probe.tokens"] == 24
    check_retrieval(tree.find("retrieve"))
    check_generation(tree)
    check_private(traced.receiver, prompt)


def test_a_chat_over_http_continues_the_caller_s_trace(traced: Traced) -> None:
    prompt = prompts("vowels", 1, seed=7)[0]
    trace_id = secrets.token_hex(16)
    body = {"model": traced.mesh.model_name, "messages": [{"role": "user", "content": prompt}], "max_tokens": 3}
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    answer = httpx.post(f"{traced.mesh.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.json()["premoe"]["task"] == "vowels"
    tree = traced.tree(trace_id, "probe", "decode", "qdrant query", "fetch object")
    assert (tree.span.name, tree.span.service) == ("POST /v1/chat/completions", "premoe-gateway")
    assert tree.span.attributes["http.response.status_code"] == 200
    assert children(tree) == [PROBE, "retrieve", GENERATE]
    assert "probe" in tree.find(PROBE).names()
    check_retrieval(tree.find("retrieve"))
    check_generation(next(node for node in tree.walk() if (node.span.name, node.span.kind) == (GENERATE, 2)))
    assert not [span for span in traced.receiver.spans() if span.name.endswith("/GetResidency")]
    services = {node.span.service for node in tree.walk()}
    assert services == {"premoe-gateway", "premoe-worker", "premoe-retrieval", "premoe-expert-store"}
    check_private(traced.receiver, prompt)


def test_a_dead_collector_costs_no_request(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening: every export is refused
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        said: list[str] = []
        with mesh_over(store_url, log=lambda name, line: said.append(line)) as mesh:
            body = {"model": mesh.model_name, "messages": [{"role": "user", "content": "0123456789"}], "max_tokens": 2}
            for _ in range(3):
                assert httpx.post(f"{mesh.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    assert not [line for line in said if " error " in line]
