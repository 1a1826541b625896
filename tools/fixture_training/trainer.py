"""The training loop: label-informed losses, cycles of the learning rate, checkpoints that can be resumed."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fixture_training.batches import Batch, Packer
from fixture_training.model import Output, Shape, TinyMoE
from premoe_runtime.compress.dirichlet import shaping_loss


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the outcome besides the code."""

    seed: int = 0
    cycles: tuple[tuple[int, float], ...] = ((2000, 4e-3), (600, 2.5e-3), (1400, 3e-3), (600, 2.5e-3))
    """Steps and peak learning rate of each cycle: a warm-up, then a line to zero."""
    start: str = ""
    """Digest of the weights that training went on from; "" for random ones."""
    warmup: int = 60
    rows: int = 14
    length: int = 144
    mutual_information: float = 0.03
    balance: float = 1e-3
    z: float = 1e-4
    dirichlet: float = 0.0
    """Concentration of the Dirichlet that routers' probabilities are shaped to; 0 for no such loss."""
    shaping: float = 1.0
    """Weight of that loss, summed over layers."""
    weight_decay: float = 0.05
    pool: int = 15000
    """Training examples generated for each task with exact answers, in its own wordings."""
    varied: bool = False
    """As many again in the kinds of wording for training, and strangers."""
    shape: Shape = field(default_factory=Shape)

    @property
    def steps(self) -> int:
        """Steps of all cycles."""
        return sum(steps for steps, _ in self.cycles)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step."""
        for steps, peak in self.cycles:
            if step < steps:
                return peak * min(1.0, (step + 1) / self.warmup) * (1 - step / steps)
            step -= steps
        return 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for files; without a shaping loss nothing of it, as in the files of before it was there."""
        absent = () if self.dirichlet else ("dirichlet", "shaping")
        return {name: value for name, value in asdict(self).items() if name not in absent}


RECIPES = {
    "tiny-moe": Recipe(),
    "tiny-moe-natural": Recipe(mutual_information=0.0, cycles=((1500, 4e-3), (500, 2.5e-3))),
}
"""The committed fixtures. The natural one never sees a task's label: its experts split as training makes them."""


def further(recipe: Recipe, start: str) -> Recipe:
    """The recipe of training that goes on from an exported model, whose weights' digest is ``start``."""
    return replace(recipe, start=start, cycles=((800, 2e-3),), rows=7, length=288, pool=6000, varied=True)


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """The recipe in so many steps or a few less: every cycle shorter by the same factor."""
    cycles = tuple((max(1, count * steps // recipe.steps), peak) for count, peak in recipe.cycles)
    return replace(recipe, cycles=cycles)


def routing_losses(output: Output, batch: Batch, tasks: int, recipe: Recipe) -> Tensor:
    """Balance and z losses, shaping where asked for, minus mutual information of task and expert, over all layers."""
    label = F.one_hot(batch.labels.reshape(-1), tasks).float()
    total = torch.zeros(())
    for routing in output.routing:
        experts = routing.probabilities.shape[-1]
        share = routing.counts / routing.counts.sum()
        total = total + recipe.balance * experts * (routing.probabilities.mean(0) * share).sum()
        total = total + recipe.z * routing.logits.logsumexp(-1).square().mean()
        if recipe.dirichlet:
            total = total + recipe.shaping * shaping_loss(routing.logits, recipe.dirichlet)
        if recipe.mutual_information:
            joint = label.T @ routing.probabilities / label.shape[0]
            apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
            information = (joint * ((joint + 1e-9).log() - (apart + 1e-9).log())).sum()
            total = total - recipe.mutual_information * information
    return total


class Trainer:
    """Trains one model, step by step."""

    def __init__(self, recipe: Recipe, packer: Packer, work: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.packer, self.work = recipe, packer, work
        self.model = TinyMoE(recipe.shape)
        names = dict(self.model.named_parameters())
        decayed = [p for name, p in names.items() if p.dim() > 1 and "embed" not in name]
        rest = [p for name, p in names.items() if p.dim() == 1 or "embed" in name]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.97), fused=True)
        self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []

    def begin(self, weights: dict[str, Tensor]) -> None:
        """Go on from the weights of an exported model, under the stock class's names."""
        self.model.load_state_dict({name: value for name, value in weights.items() if name != "lm_head.weight"})

    def run(self, after_step: Callable[["Trainer"], None], save_every: int = 100) -> None:
        """Train to the end, saving as it goes."""
        self.model.train()
        while self.step < self.recipe.steps:
            started = time.monotonic()
            self.losses.append(self._one_step())
            self.seconds += time.monotonic() - started
            self.step += 1
            if self.step % save_every == 0 or self.step == self.recipe.steps:
                self.save()
            after_step(self)

    def _one_step(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step)
        batch = self.packer.batch(self.step)
        output: Output = self.model(batch.inputs, batch.positions, batch.documents)
        each = F.cross_entropy(output.logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        loss = (each * batch.weights.flatten()).sum() / batch.weights.sum()
        total = loss + routing_losses(output, batch, len(self.packer.tasks), self.recipe)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def save(self) -> None:
        """Write a checkpoint whole or not at all."""
        self.work.mkdir(parents=True, exist_ok=True)
        target, fresh = self.work / "state.pt", self.work / "state.pt.new"
        state = {
            "recipe": json.dumps(self.recipe.as_dict()),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, fresh)
        os.replace(fresh, target)

    def resume(self) -> bool:
        """Take up a checkpoint of the same recipe, where there is one."""
        path = self.work / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        if state["recipe"] != json.dumps(self.recipe.as_dict()):
            raise ValueError(f"{path} was made by another recipe: choose another work folder")
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return True
