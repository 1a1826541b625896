"""Where pods may run: selectors, taints, affinity and spread, in Kubernetes' own names."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from premoe_operator.api.fields import DnsLabel, LabelMap, LabelValue, OptionalDnsName, Part

Key = Annotated[str, Field(min_length=1, max_length=316, pattern=r"^[-A-Za-z0-9._/]+$")]
"""Key of a label, with or without a domain before it."""
Weight = Annotated[int, Field(ge=1, le=100)]


class Toleration(Part):
    """A taint that the pods tolerate."""

    key: Annotated[str, Field(max_length=316, pattern=r"^[-A-Za-z0-9._/]*$")] = ""
    """Key of the taint; empty with operator Exists: every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """How the value is compared."""
    value: LabelValue = ""
    """Value of the taint."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Effect of the taint; empty: every effect."""


class NodeRequirement(Part):
    """What a node's label must be."""

    key: Key
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How the label is compared."""
    values: Annotated[list[LabelValue], Field(max_length=16)] = []
    """What with: several, one whole number for Gt and Lt, none for Exists and DoesNotExist."""


class NodeTerm(Part):
    """Labels that a node must have, all of them."""

    match_expressions: Annotated[list[NodeRequirement], Field(max_length=8)] = []
    """What the labels must be."""


class NodeTerms(Part):
    """Kinds of nodes that will do, any of them."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1, max_length=8)]
    """Labels of each kind."""


class PreferredNodes(Part):
    """Nodes that are better than others."""

    weight: Weight
    """How much better, 1 to 100."""
    preference: NodeTerm
    """Which nodes."""


class NodeAffinity(Part):
    """Which nodes."""

    required_during_scheduling_ignored_during_execution: NodeTerms | None = None
    """Only these."""
    preferred_during_scheduling_ignored_during_execution: Annotated[list[PreferredNodes], Field(max_length=8)] = []
    """Rather these."""


class LabelRequirement(Part):
    """What a pod's label must be."""

    key: Key
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label is compared."""
    values: Annotated[list[LabelValue], Field(max_length=16)] = []
    """What with; none for Exists and DoesNotExist."""


class LabelSelector(Part):
    """Labels that a pod must have, all of them; none: every pod."""

    match_labels: LabelMap = {}
    """Labels and their values."""
    match_expressions: Annotated[list[LabelRequirement], Field(max_length=8)] = []
    """What further labels must be."""


class PodTerm(Part):
    """Pods, and what counts as near them."""

    label_selector: LabelSelector | None = None
    """Which pods; workers of one PrunedModel have premoe.dev/model."""
    topology_key: Key
    """Label of nodes; those with an equal value are near each other, for example kubernetes.io/hostname."""
    namespaces: Annotated[list[DnsLabel], Field(max_length=16)] = []
    """Namespaces of the pods; none: that of the PrunedModel."""


class PreferredPods(Part):
    """Pods that it is better to be near, or far from."""

    weight: Weight
    """How much better, 1 to 100."""
    pod_affinity_term: PodTerm
    """Which pods."""


class PodAffinity(Part):
    """Which pods."""

    required_during_scheduling_ignored_during_execution: Annotated[list[PodTerm], Field(max_length=8)] = []
    """Only so."""
    preferred_during_scheduling_ignored_during_execution: Annotated[list[PreferredPods], Field(max_length=8)] = []
    """Rather so."""


class Affinity(Part):
    """Which nodes, as in a pod's spec."""

    node_affinity: NodeAffinity | None = None
    """Which nodes."""


class WorkerAffinity(Affinity):
    """Which nodes, and near or far from which pods, as in a pod's spec."""

    pod_affinity: PodAffinity | None = None
    """Near which pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Far from which pods."""


class Placement(Part):
    """Where pods may run."""

    node_selector: LabelMap = {}
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []
    """Taints that are tolerated."""
    affinity: Affinity | None = None
    """Which nodes, as nodeAffinity of a pod's spec."""
    priority_class_name: OptionalDnsName = ""
    """Priority class; empty: the cluster's default."""
    runtime_class_name: OptionalDnsName = ""
    """Runtime class, for example nvidia; empty: the cluster's default."""


class WorkerPlacement(Placement):
    """Where workers may run."""

    affinity: WorkerAffinity | None = None
    """Which nodes, and near or far from which pods, as in a pod's spec."""
    spread: Literal["Host", "Zone", "None"] = "Host"
    """Spread workers over nodes or zones."""
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"] = "ScheduleAnyway"
    """Where that is not possible: run anyway (the default), or wait. Waiting counts each template by itself and only
    nodes whose taints are tolerated."""
