"""Which pod template the workers have: the stored one of the present spec, a new one, or the one they have now. Pure.

A template is rendered once for each spec hash and kept in a ControllerRevision, so that a newer operator, which
renders otherwise, or a new default image restarts no worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from premoe_operator.api.names import LABEL_SPEC_HASH
from premoe_operator.api.status import Resolved
from premoe_operator.children import (
    default_image,
    image_of,
    spec_hash,
    startup_of,
    template_revision,
    template_revision_name,
    worker_deployment,
    worker_template,
)
from premoe_operator.children.inputs import metadata
from premoe_operator.decide.difference import difference
from premoe_operator.decide.situation import Situation, template_hash
from premoe_operator.kube.kinds import REVISION
from premoe_operator.kube.objects import Json, ObjectKey, ownership


@dataclass(frozen=True, slots=True)
class Rollout:
    """The workers' template, and the objects that carry it."""

    revision: Json | None = None
    deployment: Json | None = None
    """``None`` before workers may start for the first time."""
    spec_hash: str = ""
    """Of the template in use."""
    wanted_hash: str = ""
    """Of the present spec; empty before the pack's id is known."""
    is_outdated: bool = False
    """Whether this operator would render another template for the same spec."""

    def resolved(self, before: Resolved) -> Resolved:
        """What is resolved, with the template in use."""
        if self.deployment is None:
            return before
        template = self.deployment["spec"]["template"]
        name = self.revision["metadata"]["name"] if self.revision is not None else ""
        found = {"image": image_of(template), "startup_seconds": startup_of(template)}
        return before.model_copy(update={**found, "spec_hash": self.spec_hash, "template": name})


def rollout(situation: Situation, children: Mapping[ObjectKey, Json], *, may_roll: bool) -> Rollout:
    """The template of the present spec where workers may roll to it; else the one that they have, if any."""
    wanted_hash = spec_hash(situation.inputs) if situation.packed_id else ""
    if may_roll and wanted_hash:
        return _present(situation, children, wanted_hash)
    if situation.deployment is None:
        return Rollout(wanted_hash=wanted_hash)
    in_use = template_hash(situation.deployment)
    stored = _stored(situation, children, f"{situation.inputs.owner.name}-{in_use[:8]}")
    template = stored["data"] if stored is not None else _live_template(situation.deployment)
    return Rollout(
        revision=None if stored is None else _kept(situation, stored, in_use),
        deployment=worker_deployment(situation.inputs, template),
        spec_hash=in_use,
        wanted_hash=wanted_hash,
    )


def _present(situation: Situation, children: Mapping[ObjectKey, Json], wanted_hash: str) -> Rollout:
    inputs = replace(situation.inputs, image=default_image(situation.inputs))
    fresh = worker_template(inputs)
    stored = _stored(situation, children, template_revision_name(inputs))
    template = stored["data"] if stored is not None else _template_to_store(situation, fresh, wanted_hash)
    return Rollout(
        revision=template_revision(inputs, template),
        deployment=worker_deployment(inputs, template),
        spec_hash=wanted_hash,
        wanted_hash=wanted_hash,
        is_outdated=bool(difference(fresh, template) or difference(template, fresh)),
    )


def _template_to_store(situation: Situation, fresh: Json, wanted_hash: str) -> Json:
    """A fresh template, unless workers run on one of this spec already and somebody deleted its ControllerRevision."""
    deployment = situation.deployment
    if deployment is None or template_hash(deployment) != wanted_hash:
        return fresh
    live = _live_template(deployment)
    return fresh if not difference(fresh, live) else live


def _live_template(deployment: Json) -> Json:
    template: Json = deployment["spec"]["template"]
    kept = {name: value for name, value in template.get("metadata", {}).items() if name != "creationTimestamp"}
    return {**template, "metadata": kept}


def _stored(situation: Situation, children: Mapping[ObjectKey, Json], name: str) -> Json | None:
    found = children.get(ObjectKey(REVISION, situation.inputs.owner.namespace, name))
    if found is None or ownership(found, situation.model) not in ("ours", "stripped"):
        return None
    return found


def _kept(situation: Situation, stored: Json, in_use: str) -> Json:
    """The ControllerRevision of an earlier spec, as it was made."""
    name = stored["metadata"]["name"]
    wanted = metadata(situation.inputs, name, "worker", {LABEL_SPEC_HASH: in_use})
    return {name: stored[name] for name in ("apiVersion", "kind", "data", "revision")} | {"metadata": wanted}
