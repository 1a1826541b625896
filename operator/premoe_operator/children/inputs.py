"""What the builders of child objects are given, and the names and metadata that all children share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from premoe_operator.api.names import FIELD_MANAGER, LABEL_COMPONENT, LABEL_MODEL, LABEL_NAME
from premoe_operator.api.release import Release
from premoe_operator.api.resources import GROUP, KIND, VERSION, PrunedModelSpec
from premoe_operator.kube.objects import Json
from premoe_runtime.formats.errors import InvalidInput

GRPC_PORT = 50051
ADMIN_PORT = 50052
HEALTH_PORT = 50053
METRICS_PORT = 50054

JOB_COMPONENTS = ("pack", "profile", "patterns")


@dataclass(frozen=True, slots=True)
class Owner:
    """The PrunedModel that owns the children."""

    name: str
    namespace: str
    uid: str
    generation: int


def worker_name(model: str) -> str:
    """Name of the Service and the Deployment of a PrunedModel's workers."""
    return f"{model}-worker"


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that children depend on."""

    owner: Owner
    spec: PrunedModelSpec
    release: Release
    model_id: str = ""
    """Id of the pack; empty until it is packed."""
    resolved_id: str = ""
    """Id that the pack of this source had when it was first packed."""
    is_handed_over: bool = False
    """Whether another PrunedModel serves the name in place of this one."""
    load_bytes: int = 0
    """Bytes that a worker loads before it serves; 0 before the pack's facts are known."""
    image: str = ""
    """Image that the workers are pinned to; empty: that of the spec, else of the release."""
    hash_in_use: str = ""
    """Spec hash of the template that the workers have; empty: there are none."""
    retry: str = ""
    """Value of the annotation premoe.dev/retry: a new value makes new Jobs."""

    @property
    def worker_name(self) -> str:
        return worker_name(self.owner.name)

    @property
    def served_name(self) -> str:
        """The name that clients ask for."""
        return self.spec.model.served_name or self.owner.name

    @property
    def source(self) -> str:
        """Where the checkpoint lies, as one text."""
        model = self.spec.model
        return f"{model.uri}@{model.revision}" if model.revision else model.uri

    @property
    def expected_id(self) -> str:
        """Id that the pack must have: the one that the spec names, else the one that it had; empty: any."""
        return self.spec.model.model_id or self.resolved_id

    def packed_model_id(self) -> str:
        """The pack's id. Raises InvalidInput where none is known yet: the caller must pack first."""
        if not self.model_id:
            raise InvalidInput(f"{self.owner.name} is not packed yet", reason="MODEL_ID_UNKNOWN")
        return self.model_id


def default_image(inputs: Inputs) -> str:
    """The image that a new worker template takes."""
    engine, release = inputs.spec.engine, inputs.release
    return engine.image or (engine.name == "vllm" and release.vllm_image) or release.worker_image


def job_image(inputs: Inputs) -> str:
    """The image of Jobs, which pack and profile without vLLM."""
    return inputs.spec.engine.image or inputs.release.worker_image


def labels(inputs: Inputs, component: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Labels of a child; ``extra`` cannot replace ours."""
    return {
        **(extra or {}),
        LABEL_NAME: "premoe",
        LABEL_COMPONENT: component,
        "app.kubernetes.io/instance": inputs.owner.name,
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
        "app.kubernetes.io/part-of": "premoe",
        LABEL_MODEL: inputs.owner.name,
    }


def worker_selector(name: str) -> dict[str, str]:
    """Labels that select the workers of a PrunedModel within its namespace."""
    return {LABEL_NAME: "premoe", LABEL_COMPONENT: "worker", LABEL_MODEL: name}


def selector_text(name: str) -> str:
    """The same as one string, for ``status.selector`` and watches."""
    return ",".join(f"{key}={value}" for key, value in sorted(worker_selector(name).items()))


def metadata(inputs: Inputs, name: str, component: str, extra_labels: Mapping[str, str] | None = None) -> Json:
    """Metadata of a child: name, namespace, labels and the owner, without which it would outlive the PrunedModel."""
    owner = inputs.owner
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels(inputs, component, extra_labels),
        "ownerReferences": [
            {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": KIND,
                "name": owner.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
