"""The recipes of examples/evaluation fit the models that they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
from premoe_local.evaluation.recipe import Recipe

from premoe_runtime.families.registry import parse_config
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.profile.scores import refuse_family
from premoe_runtime.offline.sizing.configured import shape_of_config

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "examples" / "evaluation").glob("*.toml"))
CONFIGS = ROOT / "tests" / "fixtures" / "configs"
README = (ROOT / "examples" / "evaluation" / "README.md").read_text()


def test_there_is_one_for_each_of_the_four_models() -> None:
    assert [path.stem for path in RECIPES] == ["deepseek-r1", "gpt-oss-20b", "olmoe-1b-7b", "qwen3-30b-a3b"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_its_model(path: Path) -> None:
    recipe = Recipe.read(path, {})
    config = (CONFIGS / f"{path.stem}.json").read_bytes()
    shape = shape_of_config(config, path.stem)
    budgets = [Budget.parse(text) for text in recipe.budgets]
    for budget in budgets:
        budget.check(top_k=shape.top_k, num_experts=shape.num_experts)
        assert budget.active == shape.top_k
    # Halves, quarters and eighths.
    assert [shape.num_experts // budget.kept for budget in budgets] == [2, 4, 8]
    assert recipe.matrix == str(budgets[1])
    spec, _ = parse_config(config, path.stem)
    refuse_family((*recipe.scores, "impact"), spec.name)
    assert recipe.seeds >= 3
    assert len(recipe.tasks) >= 4
    assert all(source.harness == task for task, source in recipe.tasks.items())
    assert f"{len(shape.layer_experts)} x {shape.num_experts}, {shape.top_k} a token" in README
    assert f"--recipe {path.relative_to(ROOT)}" in path.read_text()


def test_files_of_a_recipe_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('model = "m"\n[tasks.sums]\ndata = "sums.jsonl"\n')
    assert Recipe.read(tmp_path / "recipe.toml", {}).tasks["sums"].data == str(tmp_path / "sums.jsonl")
    assert Recipe.read(tmp_path / "recipe.toml", {"model": "other"}).model == ("other",)


def test_a_recipe_names_a_model() -> None:
    with pytest.raises(InvalidInput, match="no model is named; give MODEL"):
        Recipe.read(None, {"seeds": 2})
