"""Files in which other tools say which experts stay, checked against a model. Pure, and the files are untrusted.

easy-ep      RUCAIBox/EASYEP, ``expert_statistics/expert_mask/*.json``, written by ``pruning/expert_selection.py``: a
             row of 0 and 1 for every MoE layer, one number an expert (R1: 58 × 256).
vllm-ascend  vllm-project/vllm-ascend#12525, ``expert_list_file``: JSONL, one object a line, ``{"0": [106, 65, …]}``,
             from the number of a transformer block to its experts, best first; how many stay is said elsewhere
             (``expert_prune_ratio``).
reap         CerebrasResearch/reap writes weights only; its ids travel as JSON objects that name what they list:
             ``kept_experts``, ``retained_experts`` or ``pruned_experts``, by block ("3", "model.layers.3.mlp"), also
             one object a block under ``layers``, or as pairs ``[[0, 3], [0, 11]]`` of block and pruned expert
             (vllm-project/vllm#37824, "Reap It Yourself").
json         ours (``premoe patterns show --json``, ``premoe_experts.json`` of an export): ``{"layers": [[3, 1], …]}``,
             the experts of every MoE layer that stay, best first.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias, get_args

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.safetensors import shown, unique_keys

MaskFormat = Literal["easy-ep", "vllm-ascend", "reap", "json"]
FORMATS: tuple[MaskFormat, ...] = get_args(MaskFormat)
_KEPT, _PRUNED = ("kept_experts", "retained_experts"), "pruned_experts"
_BLOCK = re.compile(r"(?:.*\blayers\.)?(\d{1,4})(?:\..*)?")
_Lists: TypeAlias = Mapping[int, Sequence[object]]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a mask must fit: the transformer block and the experts of every MoE layer."""

    blocks: tuple[int, ...]
    experts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeptExperts:
    """What a file keeps: of every MoE layer the ids, best first where the file has an order, else ascending."""

    format: MaskFormat
    layers: tuple[tuple[int, ...], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(map(len, self.layers))

    @property
    def ordered(self) -> bool:
        return self.format in ("vllm-ascend", "json")

    def best(self, number: int, where: str) -> KeptExperts:
        """The ``number`` best of every layer. Raises InvalidInput (KEEP_INVALID): no order, or a shorter list."""
        if not self.ordered or number > min(self.counts):
            why = f"lists {min(self.counts)} in some layer" if self.ordered else "does not say which are the best"
            raise InvalidInput(f"{where}: {number} experts a layer are to be kept, but it {why}", reason="KEEP_INVALID")
        return KeptExperts(self.format, tuple(ids[:number] for ids in self.layers))


def read_mask(data: bytes, shape: Shape, where: str, form: MaskFormat | None = None) -> KeptExperts:
    """The experts that a file keeps; without ``form`` the content tells it. Raises InvalidInput (MASK_INVALID)."""
    content = _parse(data, where)
    form = form or _format_of(content, where)
    layers = _READERS[form](content, shape, where)
    for layer, ids in enumerate(layers):
        if not ids:
            _refuse(where, f"{_name(shape, layer)} keeps no expert")
    return KeptExperts(form, tuple(layers))


def _parse(data: bytes, where: str) -> object:
    """A JSON document; several lines of JSON are a list of them, in a class of their own."""
    try:
        text = data.decode()
        if len(lines := [line for line in text.splitlines() if line.strip()]) > 1 and _complete(lines[0]):
            return _Lines(_load(line) for line in lines)
        return _load(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{where} is neither JSON nor JSON lines: {shown(str(error))}", reason="MASK_INVALID"
        ) from error


class _Lines(list[object]):
    """The documents of a JSONL file."""


def _complete(line: str) -> bool:
    try:
        _load(line)
    except ValueError:
        return False
    return True


def _load(text: str) -> object:
    return json.loads(text, object_pairs_hook=unique_keys, parse_constant=_no_number)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of an expert")


def _format_of(content: object, where: str) -> MaskFormat:
    if isinstance(content, _Lines):
        return "vllm-ascend"
    if isinstance(content, list):
        return "easy-ep"
    if isinstance(content, dict):
        if {*_KEPT, _PRUNED} & content.keys() or isinstance(content.get("layers"), dict):
            return "reap"
        if "layers" in content:
            return "json"
        if len(content) == 1 and all(map(_BLOCK.fullmatch, content)):
            return "vllm-ascend"
    _refuse(where, f"it is none of the known forms ({', '.join(FORMATS)}); name one with --format")


def _easy_ep(content: object, shape: Shape, where: str) -> list[tuple[int, ...]]:
    rows = _list(content, where, "a list of rows, one a MoE layer")
    _check_layers(len(rows), shape, where)
    found = []
    for layer, (row, experts) in enumerate(zip(rows, shape.experts, strict=True)):
        entries = _list(row, where, f"a list in row {layer}")
        if len(entries) != experts:
            _refuse(where, f"row {layer} has {len(entries)} entries, the layer has {experts} experts")
        for expert, entry in enumerate(entries):
            if isinstance(entry, bool) or not isinstance(entry, int | float) or entry not in (0, 1):
                _refuse(where, f"row {layer}, expert {expert}: {_short(entry)} is neither 0 nor 1")
        found.append(tuple(expert for expert, entry in enumerate(entries) if entry == 1))
    return found


def _vllm_ascend(content: object, shape: Shape, where: str) -> list[tuple[int, ...]]:
    lines = content if isinstance(content, _Lines) else [content]
    lists: dict[int, Sequence[object]] = {}
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or len(line) != 1:
            _refuse(where, f"line {number} is no object with one block")
        for block, ids in _by_block(line, where).items():
            if block in lists:
                _refuse(where, f"block {block} occurs twice")
            lists[block] = ids
    return _of_blocks(lists, shape, where)


def _reap(content: object, shape: Shape, where: str) -> list[tuple[int, ...]]:
    if not isinstance(content, dict):
        _refuse(where, "it is no JSON object")
    named = [name for name in (*_KEPT, _PRUNED) if name in content]
    layers = content.get("layers")
    if not named and isinstance(layers, dict):
        named = [name for name in (*_KEPT, _PRUNED) if all(isinstance(e, dict) and name in e for e in layers.values())]
        content = {name: {block: entry[name] for block, entry in layers.items()} for name in named}
    if len(named) != 1:
        _refuse(where, f"it must say one of {', '.join((*_KEPT, _PRUNED))}, and says {len(named)} of them")
    (name,) = named
    listed = content[name]
    if isinstance(listed, list) and name == _PRUNED:
        return _without(_of_pairs(listed, shape, where), shape)
    if not isinstance(listed, dict):
        _refuse(where, f"{name} is no object of lists by block")
    if name == _PRUNED:
        every: _Lists = dict.fromkeys(shape.blocks, ())
        return _without(_of_blocks({**every, **_by_block(listed, where)}, shape, where), shape)
    return [tuple(sorted(ids)) for ids in _of_blocks(_by_block(listed, where), shape, where)]


def _json(content: object, shape: Shape, where: str) -> list[tuple[int, ...]]:
    layers = content.get("layers") if isinstance(content, dict) else None
    rows = _list(layers, where, 'an object with "layers", a list of lists')
    _check_layers(len(rows), shape, where)
    return [_ids(row, shape, layer, where) for layer, row in enumerate(rows)]


_READERS: Mapping[MaskFormat, Callable[[object, Shape, str], list[tuple[int, ...]]]] = {
    "easy-ep": _easy_ep,
    "vllm-ascend": _vllm_ascend,
    "reap": _reap,
    "json": _json,
}


def _by_block(entries: Mapping[str, object], where: str) -> _Lists:
    """Lists by the number of their block, out of names such as ``3`` and ``model.layers.3.mlp``."""
    found: dict[int, Sequence[object]] = {}
    for name, ids in entries.items():
        match = _BLOCK.fullmatch(name)
        if match is None:
            _refuse(where, f"{shown(name)!r} is no number of a block")
        block = int(match[1])
        if block in found:
            _refuse(where, f"block {block} occurs twice")
        found[block] = _list(ids, where, f"a list of experts for block {block}")
    return found


def _of_blocks(lists: _Lists, shape: Shape, where: str) -> list[tuple[int, ...]]:
    missing, extra = sorted(set(shape.blocks) - lists.keys()), sorted(lists.keys() - set(shape.blocks))
    if extra:
        _refuse(where, f"block {extra[0]} is no MoE block of the model; those are {_range(shape.blocks)}")
    if missing:
        _refuse(where, f"block {missing[0]} is missing ({len(missing)} of {len(shape.blocks)} are)")
    return [_ids(lists[block], shape, layer, where) for layer, block in enumerate(shape.blocks)]


def _of_pairs(pairs: Iterable[object], shape: Shape, where: str) -> list[tuple[int, ...]]:
    lists: dict[int, list[object]] = {block: [] for block in shape.blocks}
    for number, pair in enumerate(pairs):
        block = pair[0] if isinstance(pair, list) and len(pair) == 2 else None
        if type(block) is not int or not isinstance(pair, list):
            _refuse(where, f"entry {number} is no pair of a block and an expert")
        lists.setdefault(block, []).append(pair[1])
    return _of_blocks(lists, shape, where)


def _without(pruned: Sequence[Sequence[int]], shape: Shape) -> list[tuple[int, ...]]:
    gone = map(set, pruned)
    return [
        tuple(expert for expert in range(count) if expert not in ids)
        for ids, count in zip(gone, shape.experts, strict=True)
    ]


def _ids(ids: object, shape: Shape, layer: int, where: str) -> tuple[int, ...]:
    """Distinct expert numbers of a layer, in their order."""
    found: list[int] = []
    for expert in _list(ids, where, f"a list of experts for {_name(shape, layer)}"):
        if type(expert) is not int:
            _refuse(where, f"{_name(shape, layer)}: {_short(expert)} is no number of an expert")
        if not 0 <= expert < shape.experts[layer]:
            _refuse(where, f"{_name(shape, layer)} lists expert {expert}, but has 0 to {shape.experts[layer] - 1}")
        found.append(expert)
    if len(set(found)) != len(found):
        twice = next(expert for expert in found if found.count(expert) > 1)
        _refuse(where, f"{_name(shape, layer)} lists expert {twice} twice")
    return tuple(found)


def _check_layers(count: int, shape: Shape, where: str) -> None:
    if count != len(shape.experts):
        _refuse(where, f"it has {count} layers, the model has {len(shape.experts)} MoE layers")


def _list(value: object, where: str, what: str) -> list[object]:
    if not isinstance(value, list | tuple):
        _refuse(where, f"expected {what}")
    return list(value)


def _name(shape: Shape, layer: int) -> str:
    return f"MoE layer {layer} (block {shape.blocks[layer]})"


def _range(blocks: Sequence[int]) -> str:
    """``3 to 60``, or all of them where some are missing in between."""
    if blocks[-1] - blocks[0] == len(blocks) - 1:
        return f"{blocks[0]} to {blocks[-1]}"
    return ", ".join(map(str, blocks))


def _short(value: object) -> str:
    return "NaN" if isinstance(value, float) and math.isnan(value) else shown(json.dumps(value)[:40])


def _refuse(where: str, what: str) -> NoReturn:
    raise InvalidInput(f"{where}: {what}; is it of this model?", reason="MASK_INVALID")
