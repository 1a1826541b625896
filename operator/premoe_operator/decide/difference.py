"""Which wanted fields an observed object lacks. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from premoe_operator.children import parse_quantity
from premoe_runtime.formats.errors import InvalidInput

_MERGED_LISTS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "ownerReferences": "uid",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
"""Lists whose entries server-side apply merges by a key: others may add entries. All other lists are taken whole."""

_WHOLE_MAPS = frozenset({"selector", "matchLabels", "podSelector", "namespaceSelector", "nodeSelector"})
"""Maps that the API takes whole: a key that somebody added changes what ours means."""

_QUANTITIES = frozenset({"requests", "limits", "sizeLimit"})


def difference(wanted: object, observed: object, path: tuple[str, ...] = ()) -> str:
    """Path of the first wanted field that the observed object lacks or has otherwise; empty when there is none.

    Fields that others added are no difference. A wanted value that is empty, zero or false equals an absent one,
    because the API drops those; quantities are compared by value, because the API rewrites them.
    """
    if not wanted and not observed:
        return ""
    if isinstance(wanted, Mapping):
        if not isinstance(observed, Mapping):
            return ".".join(path)
        if path and path[-1] in _WHOLE_MAPS and observed.keys() - wanted.keys():
            return ".".join(path)
        found = (difference(value, observed.get(name), (*path, str(name))) for name, value in wanted.items())
        return next(filter(None, found), "")
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        if not isinstance(observed, Sequence) or isinstance(observed, str):
            return ".".join(path)
        return _list_difference(wanted, observed, path)
    if wanted == observed:
        return ""
    if _QUANTITIES.intersection(path):
        try:
            if parse_quantity(str(wanted)) == parse_quantity(str(observed)):
                return ""
        except InvalidInput:
            pass  # somebody wrote what we would not: other, then
    return ".".join(path)


def _list_difference(wanted: Sequence[Any], observed: Sequence[Any], path: tuple[str, ...]) -> str:
    merge_key = _merge_key(wanted, path)
    if merge_key is None:
        if len(wanted) != len(observed):
            return ".".join(path)
        pairs = [(item, observed[index], str(index)) for index, item in enumerate(wanted)]
    else:
        by_key = {item.get(merge_key): item for item in observed if isinstance(item, Mapping)}
        pairs = [(item, by_key.get(item[merge_key]), str(item[merge_key])) for item in wanted]
    return next(filter(None, (difference(item, other, (*path, name)) for item, other, name in pairs)), "")


def _merge_key(wanted: Sequence[Any], path: tuple[str, ...]) -> str | None:
    if path[-1:] == ("ports",):
        if path == ("spec", "ports"):  # of a Service; a network policy's are taken whole
            return "port"
        key = "containerPort"
    else:
        key = _MERGED_LISTS.get(path[-1] if path else "", "")
    return key if key and all(isinstance(item, Mapping) and key in item for item in wanted) else None
