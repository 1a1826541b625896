"""CEL rules of the PrunedModel: everything that can be refused without knowing the model or the cluster.

The API server bounds the estimated cost of each rule by the limits on lengths in the schema, so every list and text
that a rule walks has one.
"""

from __future__ import annotations

from typing import NamedTuple

from premoe_operator.api.resources import MAX_NAME
from premoe_operator.api.workloads import GPU_NAME


class Rule(NamedTuple):
    """A condition on ``self`` and what the user is told where it does not hold."""

    rule: str
    message: str
    field: str = ""
    """Path of the field that the refusal names, where that is not the whole object."""

    def document(self) -> dict[str, str]:
        fields = {"rule": self.rule, "message": self.message, "fieldPath": self.field}
        return {name: value for name, value in fields.items() if value}


_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DOMAIN = rf"{_LABEL}(\\.{_LABEL})*"
_WORD = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_HF = "[A-Za-z0-9][-A-Za-z0-9._]*"
_URI = rf"hf://{_HF}/{_HF}|s3://[a-z0-9][-.a-z0-9]*[a-z0-9](/.*)?|pvc://{_DOMAIN}/.+"

_KEYS = Rule(
    f"self.all(k, k.matches('^({_DOMAIN}/)?{_WORD}$'))",
    "every key must be a name of at most 63 characters, with or without a domain before it",
)
_RESERVED_LABELS = Rule(
    "self.all(k, !k.startsWith('premoe.dev/') && !k.startsWith('app.kubernetes.io/')"
    " && !k.startsWith('batch.kubernetes.io/')"
    " && !(k in ['pod-template-hash', 'controller-uid', 'job-name']))",
    "labels of premoe.dev/, app.kubernetes.io/, batch.kubernetes.io/ and of controllers are not yours to set",
)
_RESERVED_ANNOTATIONS = Rule(
    "self.all(k, !k.startsWith('kubernetes.io/')"
    " && !k.matches('^([-a-z.]+[.])?(apparmor|seccomp)[.]security[.](alpha|beta)[.]kubernetes[.]io/'))",
    "annotations of kubernetes.io/ and of security profiles are not yours to set",
)
_KEY = Rule(
    f"self.key.matches('^({_DOMAIN}/)?{_WORD}$')",
    "key must be a name of at most 63 characters, with or without a domain before it",
    ".key",
)
_VALUES = Rule(
    "self.operator in ['In', 'NotIn', 'Exists', 'DoesNotExist']"
    " ? (has(self.values) && size(self.values) > 0) == (self.operator in ['In', 'NotIn'])"
    " : has(self.values) && size(self.values) == 1 && self.values[0].matches('^[0-9]{1,18}$')",
    "operators In and NotIn need values, Exists and DoesNotExist take none, Gt and Lt need one whole number",
    ".values",
)
_ACCOUNT = Rule(
    "!has(self.serviceAccountName) || self.serviceAccountName == ''"
    " || !has(self.serviceAccountAnnotations) || size(self.serviceAccountAnnotations) == 0",
    "serviceAccountAnnotations are for the created ServiceAccount; annotate the named one yourself",
    ".serviceAccountAnnotations",
)
_BUDGET = Rule(
    "int(self.split('/')[1]) >= int(self.split('/')[0])",
    "a budget a/b keeps b experts and activates a of them: b must be at least a",
)


def _one_gpu(limits: str) -> str:
    """The condition that a map of limits has at most one."""
    return f"!has({limits}) || {limits}.all(k, !k.matches('{GPU_NAME}') || {limits}[k].matches('^0*[01]$'))"


def _resource_rules() -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for which in ("requests", "limits"):
        rules += [
            Rule(
                f"!has(self.{which}) || self.{which}.all(k, k in ['cpu', 'memory', 'ephemeral-storage']"
                f" || k.matches('^{_DOMAIN}/{_WORD}$') && !k.matches('^([^/]*[.])?kubernetes[.]io/|^requests[.]'))",
                "a resource is cpu, memory, ephemeral-storage or a device's name with its domain, "
                "for example nvidia.com/gpu",
                f".{which}",
            ),
            Rule(
                f"!has(self.{which}) || self.{which}.all(k, !k.contains('/') || self.{which}[k].matches('^[0-9]+$'))",
                "devices are counted in whole numbers",
                f".{which}",
            ),
        ]
    rules += [
        Rule(
            "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits)"
            " || quantity(self.requests[k]).compareTo(quantity(self.limits[k])) <= 0)",
            "a request must not exceed the limit of the same resource",
            ".requests",
        ),
        Rule(
            "!has(self.requests) || self.requests.all(k, !k.contains('/')"
            " || has(self.limits) && k in self.limits && self.limits[k] == self.requests[k])",
            "a device that is requested needs a limit of the same number",
            ".requests",
        ),
        Rule(
            f"!has(self.limits) || self.limits.filter(k, k.matches('{GPU_NAME}')"
            " && self.limits[k].matches('[1-9]')).size() <= 1",
            "a pod uses one GPU, or several of one resource; leave the others out",
            ".limits",
        ),
    ]
    return tuple(rules)


ROOT_RULES = (
    Rule(
        f"self.metadata.name.size() <= {MAX_NAME} && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        f"the name must have at most {MAX_NAME} characters, lower-case letters, digits and dashes, and begin with a "
        "letter: children add to it",
    ),
    Rule(
        "!has(self.spec.model.takesOverFrom) || self.spec.model.takesOverFrom != self.metadata.name",
        "takesOverFrom names another PrunedModel",
        ".spec.model.takesOverFrom",
    ),
)

RULES: dict[str, tuple[Rule, ...]] = {
    "Model": (
        Rule(
            f"self.uri.matches('^({_URI})$')",
            "uri must be hf://org/name, s3://bucket/prefix or pvc://claim/folder",
            ".uri",
        ),
        Rule(
            "!self.uri.contains('/../') && !self.uri.endsWith('/..')",
            "uri must not lead upwards",
            ".uri",
        ),
        Rule(
            "self.uri.startsWith('hf://') == (has(self.revision) && self.revision != '')",
            "revision (a commit of 40 hexadecimal digits) is required for hf:// and refused elsewhere",
            ".revision",
        ),
        Rule(
            "!has(self.tokenSecretRef) || self.uri.startsWith('hf://')",
            "tokenSecretRef is for checkpoints of the Hub (hf://)",
            ".tokenSecretRef",
        ),
        # Not at the root, where it would refuse the status of objects that were there before the rule.
        Rule(
            "!has(self.takesOverFrom) || self.takesOverFrom == '' || has(self.servedName) && self.servedName != ''",
            "takesOverFrom needs servedName, the name that is taken over",
            ".servedName",
        ),
    ),
    "Calibration": (
        Rule("has(self.configMap) != (has(self.uri) && self.uri != '')", "give exactly one of configMap and uri"),
    ),
    "Task": (Rule("self.name != 'generalist'", "generalist is the name of the pooled pattern", ".name"),),
    "Patterns": (
        Rule(
            "!has(self.preload) || !has(self.tasks) || size(self.tasks) == 0"
            " || self.preload.all(p, self.tasks.exists(t, t.name == p))",
            "preload may name only tasks of this PrunedModel",
            ".preload",
        ),
        Rule(
            "!has(self.deny) || !has(self.tasks) || size(self.tasks) == 0"
            " || self.deny.all(d, self.tasks.exists(t, t.name == d)) && size(self.deny) < size(self.tasks)",
            "deny may name only tasks of this PrunedModel, and not all of them",
            ".deny",
        ),
    ),
    "Patterns.generalistBudget": (_BUDGET,),
    "PrunedModelSpec.budget": (_BUDGET,),
    "Experts": (Rule("self.kept >= self.active", "kept must be at least active", ".kept"),),
    "PrunedModelSpec": (
        Rule("has(self.budget) != has(self.experts)", "give exactly one of budget and experts", ".budget"),
        Rule(
            "self.engine.device != 'cpu' || !has(self.workers.resources.limits)"
            f" || !self.workers.resources.limits.exists(k, k.matches('{GPU_NAME}')"
            " && self.workers.resources.limits[k].matches('[1-9]'))",
            "engine.device is cpu, but workers.resources.limits has a GPU; leave the device out, or the GPU",
            ".engine.device",
        ),
        Rule(
            "!self.engine.device.startsWith('cuda')"
            " || has(self.workers.resources.claims) && size(self.workers.resources.claims) > 0"
            " || has(self.workers.resources.limits) && self.workers.resources.limits.exists(k, k.contains('/')"
            " && self.workers.resources.limits[k].matches('[1-9]'))",
            "engine.device is cuda, but workers.resources has neither a device in its limits nor a claim",
            ".engine.device",
        ),
        Rule(
            f"self.engine.name != 'hf' || {_one_gpu('self.workers.resources.limits')}",
            "a pod uses one GPU under the engine hf; for more, raise workers.replicas, or take engine.name vllm with "
            "as many as its argument tensor_parallel_size",
            ".workers.resources.limits",
        ),
        Rule(
            "!has(self.engine.slots) || self.engine.slots >="
            " (has(self.experts) ? self.experts.kept : int(self.budget.split('/')[1]))",
            "slots must hold the experts that the budget keeps",
            ".engine.slots",
        ),
        Rule(
            "!has(self.engine.slots) || !has(self.patterns.generalistBudget)"
            " || self.engine.slots >= int(self.patterns.generalistBudget.split('/')[1])",
            "slots must hold the experts that the generalist's budget keeps",
            ".engine.slots",
        ),
    ),
    "Engine": (
        Rule("!has(self.arguments) || self.name != 'hf'", "arguments are those of vLLM, and name is hf", ".arguments"),
    ),
    "Workers": (
        Rule(
            "!has(self.startupTimeoutSeconds)"
            " || self.rollout.progressDeadlineSeconds > self.startupTimeoutSeconds + self.drainTimeoutSeconds",
            "rollout.progressDeadlineSeconds must exceed startupTimeoutSeconds and drainTimeoutSeconds together",
            ".rollout.progressDeadlineSeconds",
        ),
        _ACCOUNT,
    ),
    "Jobs": (
        _ACCOUNT,
        Rule(
            _one_gpu("self.resources.limits"),
            "a pod uses one GPU; for more, raise jobs.parallelism",
            ".resources.limits",
        ),
    ),
    "Pack": (
        _ACCOUNT,
        Rule(
            "!has(self.resources) || (!has(self.resources.claims) || size(self.resources.claims) == 0)"
            f" && (!has(self.resources.limits) || !self.resources.limits.exists(k, k.matches('{GPU_NAME}')"
            " && self.resources.limits[k].matches('[1-9]')))",
            "packing uses neither a GPU nor a claimed device; leave it out of jobs.pack.resources",
            ".resources",
        ),
    ),
    "Workers.labels": (_KEYS, _RESERVED_LABELS),
    "Workers.annotations": (_KEYS, _RESERVED_ANNOTATIONS),
    "Workers.serviceAccountAnnotations": (_KEYS,),
    "Jobs.labels": (_KEYS, _RESERVED_LABELS),
    "Jobs.serviceAccountAnnotations": (_KEYS,),
    "Pack.serviceAccountAnnotations": (_KEYS,),
    "Placement.nodeSelector": (_KEYS,),
    "WorkerPlacement.nodeSelector": (_KEYS,),
    "LabelSelector.matchLabels": (_KEYS,),
    "LabelRequirement": (_KEY, _VALUES),
    "NodeRequirement": (_KEY, _VALUES),
    "PodTerm": (
        Rule(_KEY.rule.replace("self.key", "self.topologyKey"), f"topologyK{_KEY.message[1:]}", ".topologyKey"),
    ),
    "Peer.namespaceLabels": (_KEYS,),
    "Peer.podLabels": (_KEYS,),
    "Resources": _resource_rules(),
    "Toleration": (
        Rule(
            "self.operator == 'Exists' || has(self.key) && self.key != ''",
            "a toleration without a key needs operator Exists",
            ".operator",
        ),
        Rule(
            "self.operator == 'Equal' || !has(self.value) || self.value == ''",
            "operator Exists takes no value",
            ".value",
        ),
        Rule(
            f"!has(self.key) || self.key == '' || self.key.matches('^({_DOMAIN}/)?{_WORD}$')",
            "key must be a name of at most 63 characters, with or without a domain before it",
            ".key",
        ),
    ),
    "Tls": (
        Rule(
            "self.mode != 'Mutual' || has(self.issuerRef) != (has(self.secretName) && self.secretName != '')",
            "mode Mutual needs exactly one of secretName and issuerRef",
        ),
        Rule(
            "self.mode == 'Mutual' || !has(self.issuerRef) && (!has(self.secretName) || self.secretName == '')",
            "secretName and issuerRef are for mode Mutual",
        ),
    ),
}
"""Rules by class, or by class and field of the resource."""
