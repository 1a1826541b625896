"""A pattern set: member patterns, their exemplars and cutoffs, frozen together under one content id.

Cutoffs depend on the whole set, so a set is immutable; publishing another one switches the live pointer.
``sets/<id>.json`` holds the document, ``sets/<id>.safetensors`` the exemplars, whose digest the document names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from pydantic import Field

from premoe_runtime.formats import arrays
from premoe_runtime.formats.allocation import Splits
from premoe_runtime.formats.arrays import F32, I16
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation, OnUnknown, Semantics
from premoe_runtime.formats.documents import Name, ObjectId, parse_document
from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound
from premoe_runtime.formats.ids import PatternId, SetId, WeightsId
from premoe_runtime.formats.pattern import Metric, PatternKind
from premoe_runtime.formats.set_card import Decided, Expected, Frozen, Retention
from premoe_runtime.formats.signature import SignatureSpec, unit
from premoe_runtime.formats.space import Space

_SPLITS = ("splits", "wanted")
"""Arrays beside the exemplars of a set that shares its budgets over the layers."""
_SPACE = ("centre", "axes")
"""Arrays beside the exemplars of a set that compares signatures in a space of its own."""
_Format = Literal["premoe-pattern-set/1", "premoe-pattern-set/2"]
_PLAIN: _Format = "premoe-pattern-set/1"
_IN_SPACE: _Format = "premoe-pattern-set/2"
_REASON = "PATTERN_SET_INVALID"
_CURE = "build it again with `premoe patterns build`"


class Member(Frozen):
    """One pattern of the set.

    The generalist has no exemplars and no cutoff: nothing is recognised as it. Nor has a specialist that runs only
    where a request names it.
    """

    pattern_id: ObjectId
    task: Name
    kind: PatternKind
    cutoff: float | None = None
    """Smallest score at which the task is recognised."""
    first_exemplar: int = Field(default=0, ge=0, le=1 << 40)
    """Row of its first exemplar; its exemplars are contiguous."""
    exemplars: int = Field(default=0, ge=0, le=1 << 40)
    held_out: int = Field(default=0, ge=0, le=1 << 40)
    """Calibration prompts that are no exemplars; all prompts set the cutoff."""


class SetDocument(Frozen):
    """``sets/<id>.json``."""

    format: _Format = _PLAIN
    """1: signatures are compared as they are; 2: in a space, whose arrays lie beside the exemplars."""
    weights_id: ObjectId
    metric: Metric
    semantics: Semantics
    signature: SignatureSpec
    neighbours: int = Field(default=5, ge=1, le=10_000)
    """Nearest exemplars of a task whose similarities are averaged into its score."""
    quantile: float = Field(gt=0, lt=1)
    """Share of a task's own held-out prompts that its cutoff recognises at least."""
    wide_quantile: float | None = Field(default=None, gt=0, lt=1)
    """The same for wide tasks, those that other tasks' prompts come as near to as their own do."""
    margin: float = Field(default=0.0, ge=0, lt=1)
    """How far a cutoff goes from its own prompts towards the nearest of other tasks, on a logarithmic scale."""
    members: tuple[Member, ...] = Field(min_length=1)
    generalist_id: ObjectId | None = None
    generalist_retention: tuple[Retention, ...] = ()
    on_unknown: OnUnknown = "generalist"
    expected: Expected | None = None
    decided: tuple[Decided, ...] = ()
    """What became of held-out prompts, when ``premoe eval --record`` measured it."""
    exemplars_digest: str


@dataclass(frozen=True, slots=True, eq=False)
class PatternSet:
    """The document with its exemplars.

    exemplars  f32[N, D], unit rows, as the index stores them
    splits     how its budgets are shared over the layers; None: every layer holds equally many
    space      where signatures are compared; None: as they are
    """

    document: SetDocument
    exemplars: F32
    splits: Splits | None = None
    space: Space | None = None

    @property
    def set_id(self) -> SetId:
        """blake3 of the document, which names the exemplars' digest."""
        return SetId(arrays.digest(self.to_files()[0]))

    @property
    def weights_id(self) -> WeightsId:
        return WeightsId(self.document.weights_id)

    @property
    def allocation(self) -> Allocation:
        """How its budgets spread over the layers."""
        return "uniform" if self.splits is None else "shared"

    @property
    def members(self) -> tuple[Member, ...]:
        return self.document.members

    @property
    def specialists(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.kind == "specialist")

    @property
    def recognisable(self) -> tuple[Member, ...]:
        """Specialists that prompts are recognised as; the others run where a request names them."""
        return tuple(member for member in self.specialists if member.exemplars)

    @property
    def generalist_id(self) -> PatternId | None:
        return None if self.document.generalist_id is None else PatternId(self.document.generalist_id)

    @property
    def dimension(self) -> int:
        """Length of a signature, and of an exemplar."""
        return self.document.signature.dimension

    def member(self, name: str) -> Member:
        """The member whose task or pattern id is ``name``. Raises NotFound with the known tasks."""
        for member in self.members:
            if name in (member.task, member.pattern_id):
                return member
        known = ", ".join(member.task for member in self.members)
        raise NotFound(f"no task or pattern {name!r} in the set; it has {known}", reason="PATTERN_UNKNOWN")

    def exemplars_of(self, member: Member) -> F32:
        """f32[n, D]: the member's exemplars."""
        return self.exemplars[member.first_exemplar : member.first_exemplar + member.exemplars]

    def retention(self, budget: Budget) -> Retention | None:
        """What the generalist keeps at ``budget``, if the set says so."""
        wanted = str(budget)
        return next((entry for entry in self.document.generalist_retention if entry.budget == wanted), None)

    def layer_slots(self, kept: int, spare: int) -> tuple[int, ...] | None:
        """Slots of every layer, ``kept + spare`` on average; None for a uniform set. Raises InvalidInput."""
        return None if self.splits is None else self.splits.layer_slots(kept, spare)

    def embed(self, signature: F32) -> F32:
        """Vector to search the index with: f32[D], or rows of it, scaled to length 1.

        Raises InvalidInput: wrong length, or not finite.
        """
        given = np.asarray(signature, np.float32)
        wanted = self.document.signature.dimension
        if given.shape[-1:] != (wanted,):
            raise InvalidInput(
                f"signature has {given.shape[-1] if given.ndim else 0} values, the set's have {wanted}; "
                "was it made with other weights?",
                reason="SIGNATURE_INVALID",
            )
        if not np.isfinite(given).all():
            raise InvalidInput("signature has values that are not finite", reason="SIGNATURE_INVALID")
        return unit(given) if self.space is None else self.space.of(unit(given))

    def to_files(self) -> tuple[bytes, bytes]:
        """``sets/<id>.json`` and ``sets/<id>.safetensors``."""
        # Sets of before have no such fields, and keep their ids.
        left_out = {name for name in ("expected", "decided") if not getattr(self.document, name)}
        return self.document.model_dump_json(indent=1, exclude=left_out).encode(), _encode(
            self.exemplars, self.splits, self.space
        )

    @classmethod
    def make(
        cls, document: SetDocument, exemplars: F32, splits: Splits | None = None, space: Space | None = None
    ) -> PatternSet:
        """Build a set; ``document``'s digest and format are filled in. Raises CorruptData like ``from_files``."""
        update = {
            "format": _PLAIN if space is None else _IN_SPACE,
            "exemplars_digest": arrays.digest(_encode(exemplars, splits, space)),
        }
        made = cls(document.model_copy(update=update), exemplars, splits, space)
        _check(made, "pattern set")
        return made

    def under(self, document: SetDocument) -> PatternSet:
        """The same exemplars, splits and space under another document. Raises CorruptData like ``from_files``."""
        return PatternSet.make(document, self.exemplars, self.splits, self.space)

    @classmethod
    def from_files(cls, document: bytes, exemplars: bytes, *, where: str = "pattern set") -> PatternSet:
        """Read both files. Raises CorruptData: broken JSON, other exemplars, members that do not fit them."""
        parsed = parse_document(SetDocument, document, where=where, reason=_REASON, cure=_CURE)
        if arrays.digest(exemplars) != parsed.exemplars_digest:
            raise _corrupt(where, "exemplar file does not match the digest in the document")
        tensors, _ = arrays.decode(exemplars, where=where)
        found = {name: tensor.dtype.name for name, tensor in tensors.items()}
        wanted = {"exemplars": "float32"}
        if parsed.format == _IN_SPACE:
            wanted |= dict.fromkeys(_SPACE, "float32")
        shared = wanted | dict.fromkeys(_SPLITS, "int16")
        if found not in (wanted, shared):
            raise _corrupt(where, f"exemplar file does not hold {', '.join(wanted)} in float32, without or with splits")
        splits = Splits(*(cast("I16", tensors[name]) for name in _SPLITS)) if found == shared else None
        space = Space(*(cast("F32", tensors[name]) for name in _SPACE)) if parsed.format == _IN_SPACE else None
        made = cls(parsed, cast("F32", tensors["exemplars"]), splits, space)
        _check(made, where)
        return made

    @classmethod
    def load(cls, get: Callable[[str], bytes], set_id: str) -> PatternSet:
        """Read a set through ``get`` and check its id. Raises NotFound, CorruptData."""
        document_path, exemplars_path = set_paths(set_id)
        document = get(document_path)
        if arrays.digest(document) != set_id:
            raise _corrupt(document_path, "content does not match its id")
        return cls.from_files(document, get(exemplars_path), where=document_path)


def set_paths(set_id: str) -> tuple[str, str]:
    """Keys of the document and of the exemplars under the object store's root."""
    return f"sets/{set_id}.json", f"sets/{set_id}.safetensors"


def _encode(exemplars: F32, splits: Splits | None, space: Space | None) -> bytes:
    tables: dict[str, arrays.Array] = {"exemplars": np.asarray(exemplars, np.float32)}
    if splits is not None:
        tables |= zip(_SPLITS, (splits.common, splits.wanted), strict=True)
    if space is not None:
        tables |= zip(_SPACE, (space.centre, space.axes), strict=True)
    return arrays.encode(tables, {"format": "premoe-exemplars/1"})


def _check(pattern_set: PatternSet, where: str) -> None:
    document = pattern_set.document
    dimension, exemplars = document.signature.dimension, pattern_set.exemplars
    specialists = pattern_set.specialists
    ids = [member.pattern_id for member in document.members]
    tasks = [member.task for member in document.members]
    wrong = None
    if exemplars.ndim != 2 or exemplars.shape[1] != dimension:
        wrong = f"exemplars have shape {list(exemplars.shape)}, expected [n, {dimension}]"
    elif not np.isfinite(exemplars).all():
        wrong = "exemplars are not finite"
    elif len(set(ids)) != len(ids) or len(set(tasks)) != len(tasks):
        wrong = "two members share a pattern id or a task"
    elif any((member.cutoff is None) != (member.exemplars == 0) for member in specialists):
        wrong = "a specialist has a cutoff and no exemplars, or exemplars and no cutoff"
    elif any(member.first_exemplar + member.exemplars > len(exemplars) for member in specialists):
        wrong = "a member's exemplars lie past the end of the file"
    elif document.generalist_id is not None and not any(
        member.kind == "generalist" and member.pattern_id == document.generalist_id for member in document.members
    ):
        wrong = "generalist_id names no generalist of the set"
    elif pattern_set.splits is not None and not _lawful(pattern_set.splits):
        wrong = "splits of the layers do not add up to their budgets"
    elif pattern_set.space is not None:
        wrong = pattern_set.space.problem or (
            "" if len(pattern_set.space.centre) == dimension else "its space is none of its signatures"
        )
    if wrong:
        raise _corrupt(where, wrong)


def _lawful(splits: Splits) -> bool:
    """Whether row b - 1 shares b x L experts or all, at most E a layer, and no layer loses any as budgets grow."""
    shared, wanted = splits.common.astype(np.int64), splits.wanted.astype(np.int64)
    if shared.ndim != 2 or 0 in shared.shape or wanted.shape != shared.shape:
        return False
    experts, layers = shared.shape
    sums = np.minimum(np.arange(1, experts + 1) * layers, shared[-1].sum())
    return bool(
        (shared.sum(axis=1) == sums).all()
        and shared[-1].max() == experts
        and (np.diff(shared, axis=0, prepend=0) >= 0).all()
        and ((wanted >= 1) & (wanted <= shared[-1])).all()
    )


def _corrupt(where: str, what: str) -> CorruptData:
    return CorruptData(f"{where}: {what}; {_CURE}", reason=_REASON)
