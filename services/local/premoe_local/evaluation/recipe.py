"""A recipe: which model is asked what, as a TOML file or as options. Knows no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from premoe_local import tasks as demo_tasks
from premoe_local.demo.calibration import calibration
from premoe_local.evaluation.harness import harness_examples
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.safetensors import shown
from premoe_runtime.offline.calibration import Example, PassedOver, check_task, read_calibration
from premoe_runtime.offline.evaluation.data import DOCUMENTS, PROMPTS, TaskData, drawn
from premoe_runtime.offline.evaluation.plan import SCORES, Scope
from premoe_runtime.offline.patterns.build import MIN_PROMPTS
from premoe_runtime.offline.profile.scores import find

SEEDS = 3
_SHARES = (2, 4, 8)
"""The experts are divided by these where no budget is named; the matrices are of the second."""


_FILES = ("data", "calibration", "include")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _score(name: str) -> str:
    return find(name).name


def _budget(text: str) -> str:
    return str(Budget.parse(text))


Score = Annotated[str, AfterValidator(_score)]
Size = Annotated[str, AfterValidator(_budget)]
Name = Annotated[str, Field(min_length=1)]


class Source(_Frozen):
    """Where a task's examples come from: files of JSON lines, or a task of lm-evaluation-harness.

    Without ``calibration`` a third of ``data`` at most is asked and the rest is calibration. ``harness``: its
    training examples are calibration, its test or validation ones are asked; ``include`` is a folder of more tasks.
    """

    data: str = ""
    calibration: str = ""
    harness: str = ""
    include: str = ""


class Recipe(_Frozen):
    """``model``: a checkpoint (hf://org/name, a folder), a pack, or a store with one; or several, which training made
    alike but for its seed. Without ``tasks``: the demo's.

    ``answer_prefix`` stands before every answer, where a model's answers follow a closed thought or a channel's name.
    """

    model: tuple[Name, ...] = Field(min_length=1)
    budgets: tuple[Size, ...] = ()
    matrix: Size | None = None
    scores: tuple[Score, ...] = Field(default=SCORES, min_length=1)
    seeds: int = Field(default=SEEDS, ge=1, le=100)
    documents: int = Field(default=DOCUMENTS, ge=MIN_PROMPTS)
    prompts: int = Field(default=PROMPTS, ge=1)
    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    answer_prefix: str = ""
    tasks: Mapping[str, Source] = {}

    @field_validator("model", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @classmethod
    def read(cls, path: Path | None, options: Mapping[str, Any]) -> Recipe:
        """A file's recipe with what ``options`` say otherwise. Raises NotFound, InvalidInput (RECIPE_INVALID)."""
        found = {} if path is None else _toml(path)
        where = "options" if path is None else str(path)
        given = {**_beside(found, path), **options}
        if "model" not in given:
            raise InvalidInput("no model is named; give MODEL, or `model` in a recipe", reason="RECIPE_INVALID")
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "recipe"
            raise InvalidInput(f"{where}: {shown(place)}: {shown(first['msg'])}", reason="RECIPE_INVALID") from error

    def quick(self) -> Recipe:
        """A look: two seeds, a quarter of the experts (or the first budget), few prompts."""
        changes = {"seeds": 2, "documents": min(self.documents, 40), "prompts": min(self.prompts, 32)}
        scores = tuple(name for name in self.scores if name in ("impact", "reap", "counts", "random"))
        return self.model_copy(update={**changes, "scores": scores or self.scores[:1], "budgets": self.budgets[:1]})

    def scope(self, top_k: int, experts: int, *, probe: int = 0, quick: bool = False) -> Scope:
        """What is spanned of a model of so many experts a layer. Raises InvalidInput for budgets that it cannot run."""
        usual = [Budget(top_k, experts // share) for share in _SHARES if experts // share >= top_k]
        budgets = [Budget.parse(text) for text in self.budgets] or (usual[1:2] or usual[:1] if quick else usual)
        matrix = Budget.parse(self.matrix) if self.matrix else next((b for b in usual[1:] if b in budgets), None)
        scope = Scope(tuple(dict.fromkeys(budgets)), self.scores, None if quick else matrix or budgets[0], probe=probe)
        scope.check(top_k=top_k, num_experts=experts)
        return scope

    def data(self, unused: PassedOver) -> dict[str, TaskData]:
        """Every task's test and calibration. Raises NotFound, InvalidInput: files, tasks, too few examples."""
        if not self.tasks:
            return {task: self._demo(task) for task in demo_tasks.STORED}
        return {task: self._of(task, source, unused) for task, source in self.tasks.items()}

    def _of(self, task: str, source: Source, unused: PassedOver) -> TaskData:
        check_task(task)
        if bool(source.harness) == bool(source.data):
            raise InvalidInput(f"task {task}: give either data or harness", reason="RECIPE_INVALID")
        if source.harness:
            test, calibration_text = harness_examples(source.harness, source.include)
        else:
            test = read_calibration(Path(source.data), passed_over=unused)
            calibration_text = (
                read_calibration(Path(source.calibration), passed_over=unused) if source.calibration else []
            )
        sizes = {"seeds": self.seeds, "documents": self.documents, "prompts": self.prompts}
        return drawn(task, self._prefixed(test), self._prefixed(calibration_text), **sizes)

    def _prefixed(self, examples: Sequence[Example]) -> list[Example]:
        return [replace(one, answer=f"{self.answer_prefix}{one.answer}") for one in examples]

    def _demo(self, task: str) -> TaskData:
        texts = (demo_tasks.examples(task, "calibration", self.documents, seed) for seed in range(self.seeds))
        test = calibration(demo_tasks.examples(task, "test", self.prompts))
        return TaskData(tuple(tuple(calibration(text)) for text in texts), tuple(test))


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such recipe", reason="RECIPE_NOT_FOUND") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read as text: {error}", reason="RECIPE_INVALID") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path}: no TOML: {error}", reason="RECIPE_INVALID") from error


def _beside(found: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """The recipe with files named from its own folder."""
    named = found.get("tasks")
    if path is None or not isinstance(named, dict):
        return found
    changed = {
        task: {
            key: str(path.parent / value) if key in _FILES and isinstance(value, str) else value
            for key, value in source.items()
        }
        if isinstance(source, dict)
        else source
        for task, source in named.items()
    }
    return {**found, "tasks": changed}
