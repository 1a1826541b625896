"""Which edits restart workers, and that an upgrade restarts none: hashes as the operator of schema 5 computed them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from premoe_operator import children
from support.pruned_models import SMALLEST, Document, changed, inputs_of

STORED: Document = changed(
    SMALLEST,
    {
        "allocation": "Shared",
        "patterns": {"metric": "Impact", "answers": "Given", "onUnknown": "Generalist"},
        "engine": {"name": "hf", "device": "auto", "spare": 2, "maxSequences": 8, "maxTokens": 256, "queueLimit": 256},
        "workers": {
            "replicas": 1,
            "resources": {},
            "placement": {"spread": "Host"},
            "rollout": {"type": "Surge", "progressDeadlineSeconds": 1800},
            "startupTimeoutSeconds": 600,
            "drainTimeoutSeconds": 60,
            "scratchSize": "2Gi",
        },
        "jobs": {"resources": {}, "parallelism": 1, "retries": 3, "timeoutSeconds": 86400, "scratchSize": "2Gi"},
        "access": {"networkPolicy": "Restricted", "tls": {"mode": "Release"}},
        "tracing": {},
        "suspend": False,
    },
)
"""The smallest spec as an API server stored it under schema 5."""

PEERS = {"access.peers": [{"podLabels": {"app": "client"}}]}
TASKS = {"patterns.tasks": [{"name": "code", "calibration": {"uri": "s3://data/code.jsonl"}}]}
ISSUER = {"access.tls": {"mode": "Mutual", "issuerRef": {"name": "ca", "kind": "Issuer", "group": "cert-manager.io"}}}
ZONE = {"workers.placement.spread": "Zone", "workers.placement.tolerations": [{"key": "gpu", "operator": "Exists"}]}
GPU = {"workers.replicas": 3, "workers.resources.limits": {"memory": "8Gi", "nvidia.com/gpu": "1"}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "241ff39c7e3223b9"),
        ({"workers.replicas": 2}, "f2aec03acc5635a2"),
        ({"workers.serviceAccountAnnotations": {"a": "b"}}, "f2aec03acc5635a2"),
        ({"workers.rollout.type": "InPlace"}, "36fafa3c966bdc40"),
        ({"workers.startupTimeoutSeconds": 1200}, "54526568a0368505"),
        ({"workers.replicas": 2, "workers.startupTimeoutSeconds": 1200}, "54526568a0368505"),
        (GPU, "4b2969150ca2bc71"),
        (ZONE, "17f9272823b0e00a"),
        ({"access.networkPolicy": "None"}, "3616628f5e662fda"),
        (PEERS, "3616628f5e662fda"),
        (ISSUER, "144dc6be50ea1c00"),
        (TASKS, "2119f0f9e6916a8c"),
        ({"patterns.onUnknown": "Reject", "patterns.metric": "PEU"}, "f23381c8c8e7d92c"),
        ({"engine.device": "cuda", "engine.spare": 1}, "e7088ff10c6d18dc"),
        ({"suspend": True, "jobs.parallelism": 4}, "241ff39c7e3223b9"),
    ],
)
def test_an_upgrade_restarts_no_worker(changes: Document, expected: str) -> None:
    """The values are those of the operator of schema 5."""
    assert children.spec_hash(inputs_of(changed(STORED, changes))) == expected


HARMLESS: list[Document] = [
    {},
    PEERS,
    TASKS,
    {"access.networkPolicy": "None"},
    {"workers.replicas": 2},
    {"workers.rollout.type": "Recreate"},
    {"workers.serviceAccountAnnotations": {"a": "b"}},
    {**PEERS, **TASKS, "workers.replicas": 5, "workers.rollout.progressDeadlineSeconds": 3600},
]
"""Edits of what is in no worker template."""


@pytest.mark.parametrize("spec", [SMALLEST, STORED, changed(STORED, {"workers.labels": {"team": "search"}})])
@pytest.mark.parametrize("before", HARMLESS)
def test_a_harmless_edit_keeps_the_template_in_use(spec: Document, before: Document) -> None:
    in_use = children.spec_hash(inputs_of(changed(spec, before)))
    for after in HARMLESS:
        inputs = inputs_of(changed(spec, after), hash_in_use=in_use)
        assert children.spec_hash(inputs) == in_use
        assert children.worker_template(inputs)["metadata"]["labels"]["premoe.dev/spec-hash"] == in_use


def test_a_default_that_went_restarts_workers_only_where_the_stored_one_is_taken_out() -> None:
    """API servers stored 256 tokens an answer; an object without them lets answers fill the context."""
    without = changed(STORED, {"engine.maxTokens": None})
    assert children.spec_hash(inputs_of(without)) != children.spec_hash(inputs_of(STORED))
    for document, expected in ((STORED, "256"), (without, None), (SMALLEST, None)):
        (container,) = children.worker_template(inputs_of(document))["spec"]["containers"]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert env.get("PREMOE_WORKER_MAX_TOKENS") == expected


def test_another_template_does_not_keep_the_hash_in_use() -> None:
    before = inputs_of(STORED)
    for changes in (
        {"workers.labels": {"a": "b"}},
        {"patterns.onUnknown": "Reject"},
        {"workers.rollout.revision": "2"},
    ):
        after = inputs_of(changed(STORED, changes), hash_in_use=children.spec_hash(before))
        assert children.spec_hash(after) == children.spec_hash(replace(after, hash_in_use=""))
        assert children.spec_hash(after) != children.spec_hash(before)
