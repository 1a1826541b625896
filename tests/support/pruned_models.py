"""PrunedModels for tests: documents as a user writes them, what builders are given, and hypothesis strategies."""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st
from premoe_operator import children
from premoe_operator.api.fields import Part
from premoe_operator.api.release import Release
from premoe_operator.api.resources import parse_spec
from premoe_operator.children import Inputs, Owner
from premoe_operator.kube.objects import Json

Document = dict[str, Any]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL_ID = "blake3:" + "ab" * 32
IMAGE = "registry.test/premoe/worker@sha256:" + "1" * 64

SMALLEST: Document = {"model": {"uri": "s3://models/tiny"}, "budget": "2/4"}
"""The fewest fields that the API server takes."""

_PODS = {
    "labelSelector": {
        "matchLabels": {"app": "cache"},
        "matchExpressions": [{"key": "tier", "operator": "In", "values": ["fast"]}],
    },
    "topologyKey": "kubernetes.io/hostname",
    "namespaces": ["caches"],
}
PODS: Document = {
    "requiredDuringSchedulingIgnoredDuringExecution": [_PODS],
    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "podAffinityTerm": _PODS}],
}
_NODES = {"matchExpressions": [{"key": "arch", "operator": "In", "values": ["amd64"]}]}
PLACEMENT: Document = {
    "nodeSelector": {"pool": "batch"},
    "tolerations": [{"key": "batch", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [_NODES]},
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "preference": _NODES}],
        }
    },
    "priorityClassName": "batch",
    "runtimeClassName": "plain",
}
"""Where Jobs run."""

FULL: Document = {
    "model": {
        "uri": "hf://mistralai/Mixtral-8x7B-v0.1",
        "revision": COMMIT,
        "modelId": MODEL_ID,
        "servedName": "mixtral/8x7b",
        "tokenSecretRef": {"name": "hub", "key": "token"},
    },
    "budget": "2/4",
    "allocation": "Uniform",
    "patterns": {
        "tasks": [
            {"name": "maths", "calibration": {"configMap": {"name": "prompts", "key": "maths.jsonl"}}, "samples": 100},
            {"name": "code", "calibration": {"uri": "s3://data/code.jsonl"}},
        ],
        "metric": "SEER",
        "answers": "None",
        "generalistBudget": "2/6",
        "onUnknown": "Reject",
        "preload": ["maths"],
    },
    "engine": {
        "image": "registry.test/premoe/own:1",
        "device": "cuda",
        "threads": 3,
        "slots": 9,
        "spare": 1,
        "maxSequences": 4,
        "contextLength": 2048,
        "maxTokens": 64,
        "hostMemory": "4Gi",
        "queueLimit": 16,
    },
    "workers": {
        "replicas": 2,
        "resources": {
            "requests": {"cpu": "2", "memory": "8Gi"},
            "limits": {"memory": "8Gi", "nvidia.com/gpu": "1"},
            "claims": [{"name": "device", "template": "device"}],
        },
        "placement": {
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "gpu.test/memory", "operator": "Gt", "values": ["40"]}]}
                        ]
                    },
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 10,
                            "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]},
                        }
                    ],
                },
                "podAffinity": PODS,
                "podAntiAffinity": PODS,
            },
            "spread": "Zone",
            "whenUnsatisfiable": "DoNotSchedule",
            "priorityClassName": "serving",
            "runtimeClassName": "nvidia",
        },
        "rollout": {"type": "InPlace", "progressDeadlineSeconds": 900, "revision": "one"},
        "startupTimeoutSeconds": 300,
        "drainTimeoutSeconds": 30,
        "serviceAccountAnnotations": {"cloud.test/role": "reader"},
        "labels": {"team": "search"},
        "annotations": {"note.test/owner": "search"},
        "scratchSize": "1Gi",
        "sharedMemorySize": "512Mi",
    },
    "jobs": {
        "resources": {
            "requests": {"cpu": "1"},
            "limits": {"memory": "4Gi"},
            "claims": [{"name": "a", "template": "b"}],
        },
        "placement": PLACEMENT,
        "serviceAccountAnnotations": {"cloud.test/role": "writer"},
        "storeSecretRef": {"name": "own-s3"},
        "pack": {
            "resources": {"requests": {"cpu": "3"}, "limits": {"memory": "6Gi"}},
            "placement": PLACEMENT,
            "serviceAccountAnnotations": {"cloud.test/role": "packer"},
        },
        "parallelism": 2,
        "retries": 1,
        "timeoutSeconds": 3600,
        "scratchSize": "3Gi",
        "labels": {"queue.test/name": "batch"},
    },
    "imagePullSecrets": [{"name": "own-pull"}],
    "expertStoreRef": {"name": "store", "namespace": "elsewhere", "port": 7001},
    "retrievalRef": {"name": "patterns", "namespace": "elsewhere", "port": 7002},
    "access": {
        "peers": [{"namespaceLabels": {"team": "search"}, "podLabels": {"app": "client"}}],
        "tls": {"mode": "Mutual", "issuerRef": {"name": "own", "kind": "ClusterIssuer", "group": "issuers.test"}},
    },
    "tracing": {"endpoint": "http://collector.tracing:4317", "sampleRatio": "0.5"},
    "podTemplate": {"spec": {"dnsPolicy": "ClusterFirst"}},
}
"""Every part of the spec in use."""

RELEASE: Document = {
    "workerImage": IMAGE,
    "storeUrl": "s3://premoe/store",
    "storeSecretName": "premoe-s3",
    "expertStore": {"name": "premoe-expert-store", "namespace": "premoe", "podLabels": {"app": "store"}},
    "retrieval": {"name": "premoe-retrieval", "namespace": "premoe", "podLabels": {"app": "retrieval"}},
    "gateway": {"namespace": "premoe", "podLabels": {"app": "gateway"}},
    "operator": {"namespace": "premoe", "podLabels": {"app": "operator"}},
    "podTemplate": {"allowedPaths": ["spec.dnsPolicy", "spec.affinity", "spec.containers[premoe-worker].env"]},
}
"""A release in which everything is plain text and nothing is traced."""

OWNER = Owner("mixtral", "models", "0f2c64b2-7f2a-4f3f-9f5d-5b6f6ddc0001", 3)


def inputs_of(spec: Document, *, release: Mapping[str, Any] | None = None, **changes: Any) -> Inputs:
    """What builders are given for a spec; ``release`` replaces top-level fields of ``RELEASE``."""
    values: dict[str, Any] = {"owner": OWNER, "model_id": MODEL_ID, **changes}
    parsed = Release.model_validate({**RELEASE, **(release or {})}, by_alias=True, by_name=False)
    return Inputs(spec=parse_spec(spec), release=parsed, **values)


def children_of(inputs: Inputs) -> list[Json]:
    """Every child that the spec asks for."""
    template = children.worker_template(inputs)
    jobs = (children.pack_job(inputs), children.profile_job(inputs), children.patterns_job(inputs))
    return [
        *children.surroundings(inputs),
        children.template_revision(inputs, template),
        children.worker_deployment(inputs, template),
        *(job for job in jobs if job is not None),
    ]


def changed(document: Document, changes: Mapping[str, Any]) -> Document:
    """A copy with values at dotted paths replaced (``patterns.tasks.0.name``); None removes a field."""
    copied = copy.deepcopy(document)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place: Any = copied
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if value is None:
            place.pop(last, None)
        else:
            place[int(last) if isinstance(place, list) else last] = value
    return copied


def leaves(kind: Any, path: str = "") -> Iterator[str]:
    """Paths of the leaves below a class, in the resource's names; maps and lists of texts are leaves."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Annotated:
        yield from leaves(arguments[0], path)
    elif isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        (only,) = (each for each in arguments if each is not type(None))
        yield from leaves(only, path)
    elif typing.get_origin(kind) is list and _is_part(arguments[0]):
        yield from leaves(arguments[0], f"{path}[]")
    elif _is_part(kind):
        for field in kind.model_fields.values():
            yield from leaves(field.annotation, f"{path}.{field.alias}".lstrip("."))
    else:
        yield path


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Part)


_names = st.from_regex(r"\A[a-z]([-a-z0-9]{0,8}[a-z0-9])?\Z").filter(lambda name: name != "generalist")
_keys = st.one_of(_names, _names.map(lambda name: f"test.example/{name}"))
_label_values = st.from_regex(r"\A([A-Za-z0-9]([-A-Za-z0-9_.]{0,8}[A-Za-z0-9])?)?\Z")
_label_maps = st.dictionaries(_keys, _label_values, max_size=3)
_sizes = st.builds(lambda number, unit: f"{number}{unit}", st.integers(1, 999), st.sampled_from(["Mi", "Gi", "M", ""]))
_budgets = st.tuples(st.integers(1, 8), st.integers(0, 56)).map(lambda pair: f"{pair[0]}/{sum(pair)}")
_refs = st.fixed_dictionaries({"name": _names}, optional={"namespace": _names, "port": st.integers(1, 65535)})


def _some(fields: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Document]:
    return st.fixed_dictionaries({}, optional=dict(fields))


_models = st.one_of(
    _some({"modelId": st.just(MODEL_ID), "servedName": _names}).flatmap(
        lambda rest: st.sampled_from(
            [
                {"uri": "hf://org/Some-Model_1.5", "revision": COMMIT, **rest},
                {"uri": "s3://bucket/some/prefix", **rest},
                {"uri": "pvc://claim/folder/below", **rest},
            ]
        )
    )
)
_calibrations = st.one_of(
    st.builds(lambda name: {"configMap": {"name": name, "key": "prompts.jsonl"}}, _names),
    st.builds(lambda name: {"uri": f"s3://data/{name}.jsonl"}, _names),
)
_tasks = st.lists(
    st.builds(lambda name, rest, data: {"name": name, "calibration": data, **rest}, _names,
              _some({"samples": st.integers(1, 1000)}), _calibrations),
    max_size=4,
    unique_by=lambda task: task["name"],
)  # fmt: skip
_patterns = _tasks.flatmap(
    lambda tasks: _some(
        {
            "tasks": st.just(tasks),
            "metric": st.sampled_from(["Impact", "PEU", "SEER", "Norm", "Random", "EAN", "Sens-Norm"]),
            "answers": st.sampled_from(["Given", "Own", "None"]),
            "generalistBudget": _budgets,
            "onUnknown": st.sampled_from(["Generalist", "Full", "Reject"]),
        }
    )
)
_resources = st.tuples(st.integers(1, 16), st.integers(0, 16), st.integers(0, 8)).map(
    lambda numbers: {
        "requests": {"cpu": str(numbers[0]), "memory": "1Gi"},
        "limits": {"cpu": str(sum(numbers[:2])), **({"nvidia.com/gpu": str(numbers[2])} if numbers[2] else {})},
    }
)
_tolerations = st.sampled_from(
    [{"operator": "Exists"}, {"key": "gpu", "value": "yes"}, {"key": "a.test/b", "operator": "Exists", "effect": ""}]
)
_placements = _some(
    {
        "nodeSelector": _label_maps,
        "tolerations": st.lists(_tolerations, max_size=3),
        "spread": st.sampled_from(["Host", "Zone", "None"]),
        "priorityClassName": _names,
        "runtimeClassName": _names,
    }
)
_workers = _some(
    {
        "replicas": st.integers(0, 1000),
        "resources": _resources,
        "placement": _placements,
        "rollout": _some({"type": st.sampled_from(["Surge", "InPlace", "Recreate"]), "revision": _names}),
        "startupTimeoutSeconds": st.integers(10, 1000),
        "drainTimeoutSeconds": st.integers(1, 300),
        "serviceAccountName": _names,
        "labels": _label_maps,
        "annotations": _label_maps,
        "scratchSize": _sizes,
        "sharedMemorySize": _sizes,
    }
)
_engines = _some(
    {
        "name": st.sampled_from(["hf", "vllm", "auto"]),
        "device": st.sampled_from(["cpu", "cuda", "cuda:1"]),
        "threads": st.integers(1, 1024),
        "slots": st.integers(64, 65536),
        "spare": st.integers(0, 4096),
        "contextLength": st.integers(8, 100_000),
        "hostMemory": _sizes,
    }
)
_tls = st.one_of(
    st.builds(lambda mode: {"mode": mode}, st.sampled_from(["Release", "Disabled"])),
    st.builds(lambda name: {"mode": "Mutual", "secretName": name}, _names),
    st.builds(lambda name: {"mode": "Mutual", "issuerRef": {"name": name}}, _names),
)
_access = _some(
    {
        "networkPolicy": st.sampled_from(["Restricted", "None"]),
        "peers": st.lists(_some({"namespaceLabels": _label_maps, "podLabels": _label_maps}), max_size=3),
        "tls": _tls,
    }
)


def specs() -> st.SearchStrategy[Document]:
    """Specs that the API server takes."""
    return st.fixed_dictionaries(
        {"model": _models, "budget": _budgets},
        optional={
            "allocation": st.sampled_from(["Shared", "Uniform"]),
            "patterns": _patterns,
            "engine": _engines,
            "workers": _workers,
            "jobs": _some({"resources": _resources, "parallelism": st.integers(1, 64), "labels": _label_maps}),
            "expertStoreRef": _refs,
            "retrievalRef": _refs,
            "access": _access,
            "tracing": _some({"endpoint": st.just("http://collector:4317"), "sampleRatio": st.just("0.1")}),
            "suspend": st.booleans(),
        },
    )
