"""Addresses of the services that workers call, and of the workers."""

from __future__ import annotations

from premoe_operator.api.release import ReleaseService
from premoe_operator.api.resources import ServiceRef
from premoe_operator.children.inputs import GRPC_PORT, Inputs, worker_name
from premoe_operator.kube.objects import ModelKey


def expert_store(inputs: Inputs) -> ReleaseService:
    """The expert store that the spec names, else the release's."""
    return _resolved(inputs, inputs.spec.expert_store_ref, inputs.release.expert_store)


def retrieval(inputs: Inputs) -> ReleaseService:
    """The retrieval service that the spec names, else the release's."""
    return _resolved(inputs, inputs.spec.retrieval_ref, inputs.release.retrieval)


def grpc_target(service: ReleaseService) -> str:
    """GRPC target of a service."""
    return f"dns:///{service.address}"


def workers(inputs: Inputs) -> ReleaseService:
    """The workers' own Service."""
    return ReleaseService(name=inputs.worker_name, namespace=inputs.owner.namespace, port=GRPC_PORT)


def grpc_endpoint(inputs: Inputs) -> str:
    """GRPC target of all workers."""
    return grpc_target(workers(inputs))


def worker_target(model: ModelKey) -> str:
    """The same, of a PrunedModel of which only the name matters."""
    return grpc_target(ReleaseService(name=worker_name(model.name), namespace=model.namespace, port=GRPC_PORT))


def _resolved(inputs: Inputs, named: ServiceRef | None, default: ReleaseService) -> ReleaseService:
    if named is None:
        return default
    found = ReleaseService(name=named.name, namespace=named.namespace or inputs.owner.namespace, port=named.port)
    return default if found.address == default.address else found


def foreign_name(service: ReleaseService, default: ReleaseService) -> str:
    """The name in the certificate of another release's service; empty: it is the own one."""
    return "" if service == default else service.host
