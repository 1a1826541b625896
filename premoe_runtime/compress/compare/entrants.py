"""Who takes part in a comparison: methods with their settings, as command lines name them. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from premoe_runtime.compress.method import Method
from premoe_runtime.compress.registry import METHODS, find
from premoe_runtime.formats.errors import InvalidInput

PEERS = ("random", "select")
"""What every other one is compared with: they always take part."""
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Entrant:
    """A method and what is set otherwise than it would be, ``name=value`` each, in the order of the settings."""

    method: Method
    settings: Any
    given: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return ":".join((self.method.name, *filter(None, [",".join(self.given)])))


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A method that cannot take part."""

    name: str
    why: str


def parse(text: str) -> Entrant:
    """``NAME`` or ``NAME:setting=value,setting=value``.

    Raises InvalidInput: METHOD_UNKNOWN, SETTING_UNKNOWN, SETTING_INVALID, SETTING_TWICE.
    """
    name, _, rest = text.partition(":")
    method = find(name.strip())
    values: dict[str, Any] = {}
    for part in filter(None, map(str.strip, rest.split(","))):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        kind = _kind(method, key)
        if not equals:
            raise _invalid(method, key, "has no value; write it as setting=value")
        found = _value(method, key, kind, value.strip())
        if key in values and not isinstance(found, tuple):
            raise InvalidInput(f"--method {text[:80]} sets {key} twice; set it once", reason="SETTING_TWICE")
        values[key] = (*values[key], *found) if key in values else found
    settings = method.settings(**values)
    usual = method.settings()
    given = [
        f"{one.name}={_text(getattr(settings, one.name))}"
        for one in dataclasses.fields(method.settings)
        if getattr(settings, one.name) != getattr(usual, one.name)
    ]
    return Entrant(method, settings, tuple(given))


def entrants(named: Sequence[str]) -> tuple[list[Entrant], list[LeftOut]]:
    """Those that are named, or every method of the registry as it is, after the peers; and who is left out, and why.

    Raises InvalidInput like ``parse``, and for the same method with the same settings twice (METHOD_TWICE).
    """
    asked = [parse(text) for text in named]
    names = [one.name for one in asked]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidInput(
            f"--method names {twice} twice; name it once, or with other settings each time", reason="METHOD_TWICE"
        )
    every = {one.name: one for one in (*map(parse, PEERS), *(asked or map(parse, METHODS)))}
    reasons = {name: why_not(one.method) for name, one in every.items()}
    taken = [one for name, one in every.items() if not reasons[name]]
    return taken, [LeftOut(name, why) for name, why in reasons.items() if why]


def why_not(method: Method) -> str:
    """Why a method gives no pack of one model at a budget; empty where it does."""
    if "fine-tuned packs" in method.needs:
        return "it takes several packs, not one at a budget"
    if not {"count", "width"} & set(method.changes):
        return "it keeps all bytes"
    return ""


def _kind(method: Method, key: str) -> Any:
    hints = get_type_hints(method.settings)
    known = [one.name for one in dataclasses.fields(method.settings)]
    if key in known:
        return hints[key]
    near = get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    has = f"it has {', '.join(known)}" if known else "it has none"
    raise InvalidInput(f"{method.name} has no setting {key[:80]!r}; {hint}{has}", reason="SETTING_UNKNOWN")


def _value(method: Method, key: str, kind: Any, text: str) -> Any:
    """The text as the setting's type has it."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is tuple:
        return (_value(method, key, get_args(kind)[0], text),)
    if get_origin(kind) is Literal:
        return _one_of(method, key, text, {str(one): one for one in get_args(kind)})
    if kind is bool:
        return _one_of(method, key, text.lower(), _TRUTHS)
    try:
        return kind(text)
    except ValueError as error:
        raise _invalid(method, key, f"is no {kind.__name__}: {text[:80]!r}") from error


def _one_of(method: Method, key: str, text: str, known: dict[str, Any]) -> Any:
    if text not in known:
        raise _invalid(method, key, f"is none of {', '.join(known)}: {text[:80]!r}")
    return known[text]


def _invalid(method: Method, key: str, what: str) -> InvalidInput:
    return InvalidInput(f"setting {key} of {method.name} {what}", reason="SETTING_INVALID")


def _text(value: Any) -> str:
    several: Iterable[Any] = value if isinstance(value, tuple) else (value,)
    return "+".join(str(one).lower() if isinstance(one, bool) else str(one) for one in several)
