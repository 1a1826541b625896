"""NetworkPolicies: who may call workers, and where workers and Jobs may connect to."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from premoe_operator.api.names import LABEL_COMPONENT, LABEL_MODEL, LABEL_NAME
from premoe_operator.api.release import Callers, ReleaseService
from premoe_operator.api.resources import Peer
from premoe_operator.children.inputs import (
    ADMIN_PORT,
    GRPC_PORT,
    JOB_COMPONENTS,
    METRICS_PORT,
    Inputs,
    metadata,
    worker_selector,
)
from premoe_operator.children.services import expert_store, retrieval
from premoe_operator.kube.objects import Json

_NAMESPACE_NAME = "kubernetes.io/metadata.name"
_DNS: list[Json] = [
    {
        "to": [
            {
                "namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            }
        ],
        "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
    }
]
_HTTPS: list[Json] = [{"ports": [{"port": 443, "protocol": "TCP"}]}]
_REDIS: list[Json] = [{"ports": [{"port": 6379, "protocol": "TCP"}]}]
_OTLP_PORTS = {"http": 80, "https": 443}


def network_policy(inputs: Inputs) -> Json | None:
    """The workers' policy; None where the spec wants none.

    Probes come from the node itself, which policies do not concern. Workers of one model do not call each other.
    """
    if inputs.spec.access.network_policy == "None":
        return None
    egress = [
        *_dns(inputs),
        _to_service(expert_store(inputs), inputs.release.expert_store.blobs_port),
        _to_service(retrieval(inputs)),
        *_to_blobs(inputs),
        *_otlp(inputs),
    ]
    selector = {"matchLabels": worker_selector(inputs.owner.name)}
    ingress = [*_callers(inputs), *_scrapers(inputs)]
    return _policy(inputs, inputs.worker_name, "worker", selector, ingress, egress)


def jobs_network_policy(inputs: Inputs) -> Json | None:
    """The Jobs' policy: nobody calls them, and they reach object storage, the model hub and the trace collector."""
    if inputs.spec.access.network_policy == "None":
        return None
    egress = inputs.release.egress
    s3 = _s3(inputs)
    hub = (_HTTPS if egress.hub is None else egress.hub) if inputs.spec.model.uri.startswith("hf://") else []
    selector = {
        "matchLabels": {LABEL_NAME: "premoe", LABEL_MODEL: inputs.owner.name},
        "matchExpressions": [{"key": LABEL_COMPONENT, "operator": "In", "values": list(JOB_COMPONENTS)}],
    }
    rules = [*_dns(inputs), *s3, *(rule for rule in hub if rule not in s3), *egress.identity, *_otlp(inputs)]
    return _policy(inputs, f"{inputs.owner.name}-jobs", "profile", selector, [], rules)


def _policy(inputs: Inputs, name: str, component: str, selector: Json, ingress: list[Json], egress: list[Json]) -> Json:
    """Both directions are policed; a direction without rules is closed.

    The API server stores no empty list of rules: applying one would count as a change every time.
    """
    rules = {"ingress": ingress, "egress": egress}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(inputs, name, component),
        "spec": {
            "podSelector": selector,
            "policyTypes": ["Ingress", "Egress"],
            **{direction: each for direction, each in rules.items() if each},
        },
    }


def _callers(inputs: Inputs) -> list[Json]:
    """Who calls the workers, and the operator alone for their administration."""
    release = inputs.release
    own = [_caller(caller) for caller in (release.gateway, release.operator) if caller is not None]
    clients = [*own, *map(_peer, inputs.spec.access.peers)]
    operator = [] if release.operator is None else [_caller(release.operator)]
    ways = ((clients, GRPC_PORT), (operator, ADMIN_PORT))
    # A rule without peers would let everybody in.
    return [{"from": peers, "ports": [{"port": port, "protocol": "TCP"}]} for peers, port in ways if peers]


def _scrapers(inputs: Inputs) -> list[Json]:
    metrics = inputs.release.metrics
    everybody: list[Json] = [{"namespaceSelector": {}}]
    ports = [{"port": METRICS_PORT, "protocol": "TCP"}]
    return [{"from": metrics.peers or everybody, "ports": ports}] if metrics.enabled else []


def _caller(caller: Callers) -> Json:
    return _pods_of(caller.namespace, caller.pod_labels)


def _peer(peer: Peer) -> Json:
    selector: Json = {"podSelector": _selector(peer.pod_labels)}
    if peer.namespace_labels:
        selector["namespaceSelector"] = _selector(peer.namespace_labels)
    return selector


def _pods_of(namespace: str, pod_labels: Mapping[str, str]) -> Json:
    return {
        "namespaceSelector": _selector({_NAMESPACE_NAME: namespace}),
        "podSelector": _selector(pod_labels),
    }


def _selector(wanted: Mapping[str, str]) -> Json:
    """Without labels it selects everything; an empty map of them is stored as none, like an empty list of rules."""
    return {"matchLabels": dict(wanted)} if wanted else {}


def _to_service(service: ReleaseService, *more_ports: int) -> Json:
    ports = [{"port": port, "protocol": "TCP"} for port in (service.port, *more_ports)]
    return {"to": [_pods_of(service.namespace, service.pod_labels)], "ports": ports}


def _to_blobs(inputs: Inputs) -> list[Json]:
    """Where workers read blobs beside the expert store."""
    release = inputs.release
    redis = _REDIS if release.egress.redis is None else release.egress.redis
    return [
        *(redis if release.worker_redis.secret_name else []),
        *([*_s3(inputs), *release.egress.identity] if release.worker_object_store.read else []),
    ]


def _s3(inputs: Inputs) -> list[Json]:
    return _HTTPS if inputs.release.egress.s3 is None else inputs.release.egress.s3


def _dns(inputs: Inputs) -> list[Json]:
    return _DNS if inputs.release.egress.dns is None else inputs.release.egress.dns


def _otlp(inputs: Inputs) -> list[Json]:
    endpoint = inputs.spec.tracing.endpoint or inputs.release.tracing.endpoint
    if not endpoint:
        return []
    # The release's rules are about its own collector.
    if inputs.release.egress.otlp is not None and not inputs.spec.tracing.endpoint:
        return inputs.release.egress.otlp
    parts = urlsplit(endpoint)
    return [{"ports": [{"port": parts.port or _OTLP_PORTS[parts.scheme], "protocol": "TCP"}]}]
