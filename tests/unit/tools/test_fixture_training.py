"""The training of the fixture models: documents, batches, and runs that stop and go on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixture_training.batches import PROMPT_WEIGHT, Packer, encode, training_talks
from fixture_training.chat import end_token
from fixture_training.model import Experts, Shape
from fixture_training.trainer import RECIPES, Recipe, Trainer, further
from premoe_local.tasks import TRAINED
from premoe_local.tasks.wordings import PLAIN, kinds, strangers, talks
from tokenizers import Tokenizer
from transformers import AutoTokenizer

MODEL = Path(__file__).parents[2] / "fixtures" / "tiny-moe"
SMALL = Shape(hidden=16, layers=1, heads=2, kv_heads=1, head_width=8, experts=4, experts_per_token=2, expert_width=8)
RECIPE = Recipe(cycles=((6, 1e-3),), warmup=2, rows=2, length=96, shape=SMALL)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture
def packer(tokenizer: Tokenizer) -> Packer:
    pools = {
        task: talks(task, PLAIN, 20, split="train") + talks(task, "turns.other", 20, split="train")
        for task in ("add", "rev", "json", "roman", "lang", "kb")
    }
    return Packer({task: encode(pool, tokenizer) for task, pool in pools.items()}, RECIPE.rows, RECIPE.length, 0)


@pytest.mark.parametrize("kind", [PLAIN, "turns.same", "turns.other", "system.rules", "follow.and"])
def test_a_document_is_what_the_chat_template_writes(kind: str, tokenizer: Tokenizer) -> None:
    template = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    for talk in talks("kb", kind, 5, split="train"):
        (document,) = encode([talk], tokenizer)
        messages = [{"role": turn.role, "content": turn.content} for turn in talk.turns]
        messages.append({"role": "assistant", "content": talk.answer})
        assert document.ids == template.apply_chat_template(messages, tokenize=True, return_dict=False)


def test_answers_weigh_most_and_every_token_has_the_task_of_its_turn(tokenizer: Tokenizer) -> None:
    talk = next(each for each in talks("add", "turns.other", 50, split="train") if each.turns[0].task == "kb")
    (document,) = encode([talk], tokenizer)
    end = end_token(tokenizer)
    first = document.ids.index(end) + 1
    assert set(document.tasks[:first]) == {"kb"}
    assert set(document.tasks[first:]) == {"add"}
    assert document.weights[0] == 0
    assert [weight for token, weight in zip(document.ids, document.weights, strict=True) if token == end] == [1, 1]
    asked = document.weights[first : first + 5]
    assert asked == [PROMPT_WEIGHT] * 5


def test_where_an_excerpt_ends_is_not_learnt_and_a_stranger_gets_no_answer(tokenizer: Tokenizer) -> None:
    excerpt, stranger = encode([*talks("py", PLAIN, 1), *talks("html", PLAIN, 1)], tokenizer)
    assert excerpt.weights[-2:] == [1, 0]
    assert set(stranger.weights) == {0, PROMPT_WEIGHT}
    assert end_token(tokenizer) not in stranger.ids


def test_a_batch_depends_on_the_seed_and_the_step_alone(packer: Packer) -> None:
    packer.batch(0)
    assert torch.equal(packer.batch(3).inputs, packer.batch(3).inputs)
    assert not torch.equal(packer.batch(3).inputs, packer.batch(4).inputs)
    assert set(packer.batch(3).labels.flatten().tolist()) <= set(range(6))


def test_a_run_that_was_stopped_ends_as_one_that_was_not(packer: Packer, tmp_path: Path) -> None:
    whole = Trainer(RECIPE, packer, tmp_path / "whole")
    whole.run(lambda trainer: None)

    class Stop(Exception):
        pass

    def stop(trainer: Trainer) -> None:
        if trainer.step == 4:
            raise Stop

    with pytest.raises(Stop):
        Trainer(RECIPE, packer, tmp_path / "parts").run(stop, save_every=3)
    again = Trainer(RECIPE, packer, tmp_path / "parts")
    assert again.resume()
    assert again.step == 3
    again.run(lambda trainer: None)
    assert again.losses == whole.losses
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    with pytest.raises(ValueError, match="made by another recipe"):
        Trainer(replace(RECIPE, seed=1), packer, tmp_path / "parts").resume()


def test_training_goes_on_from_the_weights_it_is_given(packer: Packer, tmp_path: Path) -> None:
    first = Trainer(RECIPE, packer, tmp_path)
    first.run(lambda trainer: None)
    weights = first.model.state_dict()
    later = Trainer(replace(RECIPE, seed=7), packer, tmp_path)
    later.begin({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    assert all(torch.equal(value, weights[name]) for name, value in later.model.state_dict().items())


def test_the_natural_recipe_has_no_labels() -> None:
    assert RECIPES["tiny-moe"].mutual_information > 0
    assert RECIPES["tiny-moe-natural"].mutual_information == 0


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_are_those_of_the_committed_models(name: str) -> None:
    said = json.loads((MODEL.parent / name / "training.json").read_text())["recipe"]
    recipe = json.loads(json.dumps(RECIPES[name].as_dict()))
    # The committed models' files know no start and no wordings: both are those of before there was a choice.
    assert {"start": "", "varied": False, **said} == recipe


def test_other_wordings_and_strangers_are_of_training_that_goes_on() -> None:
    plain, varied = training_talks(30, 1, varied=False), training_talks(30, 1, varied=True)
    assert set(plain) == set(TRAINED)
    assert set(varied) == {*TRAINED, *strangers("train")}
    assert {talk.kind for talk in plain["add"]} == {PLAIN}
    assert {talk.kind for talk in varied["add"]} > {PLAIN, *list(kinds("train"))[:1]}
    assert sorted(talk.turns[0].content for talk in varied["add"] if talk.kind == PLAIN) == sorted(
        talk.turns[0].content for talk in plain["add"]
    )
    assert (further(RECIPE, "abc").start, further(RECIPE, "abc").varied, RECIPE.varied) == ("abc", True, False)


def test_experts_multiply_their_own_tokens_alone() -> None:
    torch.manual_seed(0)
    experts, counts = Experts(Shape(hidden=16, experts=5, expert_width=8)), torch.tensor([3, 0, 7, 0, 1])
    tokens, gates = torch.randn(11, 16), torch.rand(11, 1)
    found = experts(tokens, gates, counts)
    of_token = torch.repeat_interleave(torch.arange(5), counts)
    for token, expert in enumerate(of_token.tolist()):
        gate, up = (experts.gate_up_proj[expert] @ tokens[token]).chunk(2)
        wanted = experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up * gates[token])
        assert torch.allclose(found[token], wanted, atol=1e-5)
    found.square().sum().backward()
    assert experts.gate_up_proj.grad is not None
    assert [bool(grad.any()) for grad in experts.gate_up_proj.grad] == [True, False, True, False, True]
