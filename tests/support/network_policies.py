"""NetworkPolicies as rules of nftables: pure functions from objects of the API to a ruleset.

The bridge plug-in of the test node enforces nothing. Semantics are those of networking.k8s.io/v1: a pod that a policy
selects for a direction accepts only what one of its policies allows; traffic of the node itself passes; answers pass.
Addresses and ports are those after a Service's translation.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Object = Mapping[str, Any]
Direction = Literal["ingress", "egress"]
TABLE = "premoe_policies"
ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Port:
    """A range of ports of one protocol."""

    protocol: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Allow:
    """Traffic that one rule lets pass: any of the networks with any of the ports; None stands for all of them."""

    networks: tuple[str, ...] | None
    ports: tuple[Port, ...] | None


@dataclass(frozen=True, slots=True)
class PodRules:
    """What one pod accepts in each direction; None: everything, as no policy selects it there."""

    name: str
    address: str
    ingress: tuple[Allow, ...] | None
    egress: tuple[Allow, ...] | None


def rules_of_pods(
    policies: Iterable[Object], pods: Iterable[Object], namespaces: Iterable[Object]
) -> tuple[PodRules, ...]:
    """The rules of every pod that a policy selects, sorted by name. Raises KeyError, ValueError for broken objects."""
    running = [pod for pod in pods if _has_own_address(pod)]
    labels = {_name(namespace): _labels(namespace) for namespace in namespaces}
    listed = list(policies)
    found = []
    for pod in running:
        selecting = [policy for policy in listed if _selects(policy, pod)]
        ingress = _allowed(selecting, "ingress", pod, running, labels)
        egress = _allowed(selecting, "egress", pod, running, labels)
        if ingress is not None or egress is not None:
            found.append(PodRules(f"{_namespace(pod)}/{_name(pod)}", pod["status"]["podIP"], ingress, egress))
    return tuple(sorted(found, key=lambda rules: rules.name))


def ruleset(rules: Iterable[PodRules]) -> str:
    """A script for ``nft -f``: replaces the table in one transaction.

    Bridged packets pass the forward hook too (net.bridge.bridge-nf-call-iptables). What a pod sends to its own node
    passes the input hook; what the node sends, probes of the kubelet included, passes neither.
    """
    listed = list(rules)
    chains = [chain for pod in listed for chain in _chains(pod)]
    answers = "  ct state established,related accept"
    forward = [answers, *_dispatch(listed, "egress"), *_dispatch(listed, "ingress")]
    return "\n".join(
        [
            f"table ip {TABLE}",
            f"delete table ip {TABLE}",
            f"table ip {TABLE} {{",
            *chains,
            " chain forward {",
            "  type filter hook forward priority -10; policy accept;",
            *forward,
            " }",
            " chain input {",
            "  type filter hook input priority -10; policy accept;",
            answers,
            *_dispatch(listed, "egress"),
            " }",
            "}",
            "",
        ]
    )


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects these labels; the empty one selects all. Raises ValueError: unknown operator."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions") or [])


def _holds(expression: Object, labels: Mapping[str, str]) -> bool:
    key, operator, values = expression["key"], expression["operator"], expression.get("values") or []
    if operator == "In":
        return labels.get(key) in values
    if operator == "NotIn":
        return labels.get(key) not in values
    if operator == "Exists":
        return key in labels
    if operator == "DoesNotExist":
        return key not in labels
    raise ValueError(f"unknown operator {operator} in a label selector")


def _selects(policy: Object, pod: Object) -> bool:
    same = _namespace(policy) == _namespace(pod)
    return same and matches(policy["spec"].get("podSelector") or {}, _labels(pod))


def _allowed(
    policies: Sequence[Object],
    direction: Direction,
    pod: Object,
    pods: Sequence[Object],
    namespaces: Mapping[str, Mapping[str, str]],
) -> tuple[Allow, ...] | None:
    """What these policies, which select ``pod``, allow it; None when none of them is about the direction."""
    isolating = [policy for policy in policies if direction in _directions(policy)]
    if not isolating:
        return None
    return tuple(
        allow
        for policy in isolating
        for rule in policy["spec"].get(direction) or []
        for allow in _allows(rule, direction, policy, pod, pods, namespaces)
    )


def _directions(policy: Object) -> set[str]:
    """Without policyTypes a policy is about ingress, and about egress when it has such rules."""
    spec = policy["spec"]
    default = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    return {kind.lower() for kind in spec.get("policyTypes") or default}


def _allows(
    rule: Object,
    direction: Direction,
    policy: Object,
    pod: Object,
    pods: Sequence[Object],
    namespaces: Mapping[str, Mapping[str, str]],
) -> list[Allow]:
    peers = rule.get("from" if direction == "ingress" else "to") or []
    wanted = rule.get("ports") or []
    if direction == "ingress":
        # Ports are those of the pod itself, named ones too.
        return [Allow(_networks(peers, policy, pods, namespaces), _ports(wanted, pod))]
    named = any(isinstance(port.get("port"), str) for port in wanted)
    if not named:
        return [Allow(_networks(peers, policy, pods, namespaces), _ports(wanted, pod))]
    # A named port may be another number in each pod that it leads to.
    targets = [other for other in pods if not peers or _is_peer(other, peers, policy, namespaces)]
    return [Allow((str(_network(other)),), _ports(wanted, other)) for other in targets]


def _networks(
    peers: Sequence[Object], policy: Object, pods: Sequence[Object], namespaces: Mapping[str, Mapping[str, str]]
) -> tuple[str, ...] | None:
    if not peers:
        return None
    blocks = [network for peer in peers if "ipBlock" in peer for network in _block(peer["ipBlock"])]
    addresses = [_network(pod) for pod in pods if _is_peer(pod, peers, policy, namespaces)]
    # nft refuses networks that overlap in one set.
    return tuple(str(network) for network in ipaddress.collapse_addresses([*blocks, *addresses]))


def _network(pod: Object) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(pod["status"]["podIP"])


def _block(block: Object) -> list[ipaddress.IPv4Network]:
    """The networks of a block without its exceptions. IPv6 blocks give none: pods of the node have no such address."""
    networks: list[ipaddress.IPv4Network] = []
    whole = ipaddress.ip_network(block["cidr"])
    if isinstance(whole, ipaddress.IPv4Network):
        networks = [whole]
    for text in block.get("except") or []:
        hole = ipaddress.IPv4Network(text)
        networks = [
            part
            for network in networks
            for part in (network.address_exclude(hole) if hole.subnet_of(network) else [network])
        ]
    return networks


def _is_peer(pod: Object, peers: Sequence[Object], policy: Object, namespaces: Mapping[str, Mapping[str, str]]) -> bool:
    for peer in peers:
        if "ipBlock" in peer:
            continue
        selector = peer.get("namespaceSelector")
        if selector is None:
            inside = _namespace(pod) == _namespace(policy)
        else:
            inside = matches(selector, namespaces.get(_namespace(pod), {}))
        if inside and matches(peer.get("podSelector") or {}, _labels(pod)):
            return True
    return False


def _ports(wanted: Sequence[Object], pod: Object) -> tuple[Port, ...] | None:
    """Ports with names looked up in ``pod``; a name that it lacks gives no port."""
    if not wanted:
        return None
    found = []
    for port in wanted:
        protocol, number = port.get("protocol", "TCP").lower(), port.get("port")
        if number is None:
            found.append(Port(protocol, 0, 65535))
        elif isinstance(number, int):
            found.append(Port(protocol, number, port.get("endPort", number)))
        else:
            found.extend(Port(protocol, value, value) for value in _named(pod, number, protocol))
    return tuple(found)


def _named(pod: Object, name: str, protocol: str) -> list[int]:
    return [
        port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or []
        if port.get("name") == name and port.get("protocol", "TCP").lower() == protocol
    ]


def _has_own_address(pod: Object) -> bool:
    status = pod.get("status", {})
    own = not pod["spec"].get("hostNetwork", False)
    return own and bool(status.get("podIP")) and status.get("phase") not in ENDED


def _dispatch(pods: Sequence[PodRules], direction: Direction) -> list[str]:
    """The rule that leads a packet to the chain of the pod it leaves or reaches."""
    isolated = [pod for pod in pods if (pod.egress if direction == "egress" else pod.ingress) is not None]
    if not isolated:
        return []
    # A pod that is going and a new one may show the same address for a moment.
    jumps = dict.fromkeys(f"{pod.address} : jump {_chain(pod, direction)}" for pod in isolated)
    entries = ", ".join(jumps)
    return [f"  ip {'saddr' if direction == 'egress' else 'daddr'} vmap {{ {entries} }}"]


def _chains(pod: PodRules) -> list[str]:
    lines = []
    directions: list[tuple[Direction, tuple[Allow, ...] | None]] = [("ingress", pod.ingress), ("egress", pod.egress)]
    for direction, allows in directions:
        if allows is None:
            continue
        lines.append(f" chain {_chain(pod, direction)} {{ # {pod.name}")
        lines.extend(f"  {line}" for allow in allows for line in _statements(allow, direction))
        # Dropped, as most network plug-ins do, so that clients meet time-outs and not refusals.
        lines.extend(["  drop", " }"])
    return lines


def _statements(allow: Allow, direction: Direction) -> list[str]:
    if allow.networks == () or allow.ports == ():
        return []
    peer = ""
    if allow.networks is not None:
        peer = f"ip {'daddr' if direction == 'egress' else 'saddr'} {{ {', '.join(allow.networks)} }} "
    if allow.ports is None:
        return [f"{peer}return"]
    return [f"{peer}{port.protocol} dport {_range(port)} return" for port in allow.ports]


def _range(port: Port) -> str:
    return str(port.first) if port.first == port.last else f"{port.first}-{port.last}"


def _chain(pod: PodRules, direction: Direction) -> str:
    return f"{direction}_{pod.address.replace('.', '_')}"


def _name(resource: Object) -> str:
    return str(resource["metadata"]["name"])


def _namespace(resource: Object) -> str:
    return str(resource["metadata"]["namespace"])


def _labels(resource: Object) -> Mapping[str, str]:
    labels: Mapping[str, str] = resource["metadata"].get("labels") or {}
    return labels
