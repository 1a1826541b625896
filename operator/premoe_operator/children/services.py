"""The services that workers call, and the headless Service by which workers are called."""

from __future__ import annotations

from premoe_operator.api.release import ReleaseService
from premoe_operator.api.resources import ServiceRef
from premoe_operator.children.inputs import ADMIN_PORT, GRPC_PORT, Inputs, Obj, metadata, worker_selector


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


def worker_service(inputs: Inputs) -> Obj:
    """A headless Service: gRPC clients see every ready worker and choose among them."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(inputs, inputs.worker_name, "worker"),
        "spec": {
            "clusterIP": "None",
            "selector": worker_selector(inputs.owner.name),
            "ports": [
                {"name": "grpc", "port": GRPC_PORT, "targetPort": "grpc", "protocol": "TCP", "appProtocol": "grpc"},
                {"name": "admin", "port": ADMIN_PORT, "targetPort": "admin", "protocol": "TCP", "appProtocol": "grpc"},
            ],
        },
    }


def _resolved(inputs: Inputs, named: ServiceRef | None, default: ReleaseService) -> ReleaseService:
    if named is None:
        return default
    return ReleaseService(name=named.name, namespace=named.namespace or inputs.owner.namespace, port=named.port)
