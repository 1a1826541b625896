"""Learning the coefficients of a mix: the mixed model comes near each fine-tune on a few prompts of its task.

loss = Σ_k 1/K (‖h - h_k‖² / ‖h_k‖² over all blocks + T² KL(fine-tune ‖ mix)) + gamma mean|alpha - mean alpha|

per token of the prompts; h are blocks' outputs. The gradient of a coefficient is that of the weights along the
fine-tune's difference from the base, so any number of fine-tunes takes one backward pass a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import blake3
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from premoe_runtime.compress.method import Job
from premoe_runtime.compress.mixing import Mix
from premoe_runtime.compress.objectives import apart, divergence
from premoe_runtime.compress.student import Lesson, Passed, Student
from premoe_runtime.compress.trainer import MEANS
from premoe_runtime.compress.weights import ExpertWeights, PackWeights
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.batches import pad, plan_batches
from premoe_runtime.offline.profile.samples import encode_examples

TOKENS = 512
"""Of the prompts whose logits are in memory, and in a file, at once."""


@dataclass(frozen=True, slots=True)
class Learning:
    """Steps of Adam at a rate; temperature T and weight gamma of the loss."""

    steps: int
    rate: float
    temperature: float
    gamma: float

    def __post_init__(self) -> None:
        """Raises InvalidInput (SETTING_INVALID)."""
        for name, wrong in (
            ("steps", self.steps < 0),
            ("rate", not self.rate > 0),
            ("temperature", not self.temperature > 0),
            ("gamma", not self.gamma >= 0),
        ):
            if wrong:
                raise InvalidInput(
                    f"--{name} {getattr(self, name)} makes no sense here; give a larger number",
                    reason="SETTING_INVALID",
                )


class Lessons:
    """Prompts of each fine-tune, and what it makes of them, in files."""

    def __init__(self, job: Job, tuned: Mapping[str, PackWeights]) -> None:
        self._folder = job.work / "lessons"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lessons: list[list[Lesson]] = []
        job.report.stage("asking the fine-tunes", len(tuned))
        for number, (name, pack) in enumerate(tuned.items()):
            teacher = Student(pack, device=job.device, threads=job.threads)
            samples = encode_examples(
                teacher.slots, job.data[name], answers="none", where=name, passed_over=job.report.note
            )
            tokens = [sample.token_ids for sample in samples]
            batches = plan_batches([len(ids) for ids in tokens], TOKENS)
            self._lessons.append([_lesson(tokens, indices, teacher.device) for indices in batches])
            for at, lesson in enumerate(self._lessons[-1]):
                with torch.no_grad():
                    passed = teacher.run(lesson)
                save_file(_tensors(passed), self._folder / f"{number}-{at}.safetensors")
            job.report.advance(1)
            del teacher

    def of(self, number: int) -> Iterator[tuple[Lesson, Passed]]:
        """A fine-tune's, piece by piece."""
        for at, lesson in enumerate(self._lessons[number]):
            found = load_file(self._folder / f"{number}-{at}.safetensors", device=str(lesson.token_ids.device))
            hidden = tuple(found[f"hidden.{block}"] for block in range(len(found) - 1))
            yield lesson, Passed(found["logits"], hidden, ())

    def tokens(self, number: int) -> int:
        return sum(len(lesson.rows) for lesson in self._lessons[number])


def learnt(job: Job, mix: Mix, lessons: Lessons, learning: Learning, *, stage: str) -> Mix:
    """The mix after all steps; a killed run of the same goes on behind its last step. ``stage`` names the file.

    Memory: 8 bytes a weight of the model, and a layer of one source in float32. Raises InvalidInput (LOSS_NOT_FINITE).
    """
    job.report.stage(f"learning coefficients{stage}", learning.steps)
    alpha = mix.alpha.clone().requires_grad_()
    adam = torch.optim.Adam([alpha], lr=learning.rate)
    path, key = job.work / f"alpha{stage}.safetensors", _key(job, mix, learning)
    done = _restored(path, key, alpha, adam)
    job.report.advance(done)
    model = Mixed(mix, job) if done < learning.steps else None
    while model is not None and done < learning.steps:
        adam.zero_grad()
        model.take(replace(mix, alpha=alpha.detach()))
        model.backward(lessons, learning.temperature)
        apart_from_mean = (alpha - alpha.mean(dim=1, keepdim=True)).abs().mean()
        (learning.gamma * apart_from_mean).backward()  # type: ignore[no-untyped-call]
        assert alpha.grad is not None
        alpha.grad += model.gradient()
        if not bool(alpha.grad.isfinite().all()):
            raise InvalidInput("the loss is no number any more; give a lower --rate", reason="LOSS_NOT_FINITE")
        adam.step()
        done += 1
        _save(path, key, alpha, adam, done)
        job.report.advance(1)
    return replace(mix, alpha=alpha.detach())


class Mixed:
    """The mixed model in memory, and the gradient of its weights."""

    def __init__(self, mix: Mix, job: Job) -> None:
        self._mix = mix
        self._student = Student(mix.base, ("experts", "routers", "rest"), device=job.device, threads=job.threads)

    def take(self, mix: Mix) -> None:
        """Let its weights be those of a mix."""
        self._mix = mix
        for name in mix.layout.chunks:
            if name.startswith("experts."):
                self._take_experts(name, mix.experts(int(name.split(".")[1])))
                continue
            above, _, last = mix.base.model.skeleton[name].memory.rpartition(".")
            getattr(self._student.slots.model.get_submodule(above), last).data.copy_(mix.tensor(name))

    def backward(self, lessons: Lessons, temperature: float) -> float:
        """The loss but for gamma's part; its gradients are in the weights."""
        total = 0.0
        for weight in self._student.trained.values():
            weight.grad = None
        for number in range(len(self._mix.tuned)):
            for lesson, wanted in lessons.of(number):
                with torch.enable_grad():
                    passed = self._student.run(lesson)
                    loss = apart(wanted, passed) + divergence(wanted.logits, passed.logits, temperature)
                    loss = loss / (lessons.tokens(number) * len(self._mix.tuned))
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        return total

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """f32[K, C] of the coefficients: the weights' gradient along every fine-tune's difference from the base."""
        mix = self._mix
        found = torch.zeros(mix.alpha.shape, dtype=torch.float64)
        for name, chunks in mix.layout.chunks.items():
            gradients = self._gradients(name)
            if not gradients:
                continue
            base = weights_of(mix.base, name)
            for number, pack in enumerate(mix.tuned):
                for field, value in weights_of(pack, name).items():
                    if field in gradients:
                        along = (gradients[field] * (value - base[field])).reshape(len(chunks), -1).sum(dim=1)
                        found[number].index_add_(0, chunks, along.double())
        return found.float()

    def _take_experts(self, name: str, weights: ExpertWeights) -> None:
        slots = self._slots(name)
        for field in self._mix.base.manifest.layout.fields:
            self._student.trained[f"{name}.{field.name}"].data[slots] = weights.field(field.name).to(slots.device)

    def _gradients(self, name: str) -> dict[str, Tensor]:
        """Of one weight, or of all weights of a layer's experts."""
        if not name.startswith("experts."):
            weight = self._student.trained.get(name)
            return {} if weight is None or weight.grad is None else {"": weight.grad.cpu()}
        found, slots = dict[str, Tensor](), self._slots(name)
        for field in self._mix.base.manifest.layout.fields:
            gradient = self._student.trained[f"{name}.{field.name}"].grad
            if gradient is not None:
                found[field.name] = gradient[slots].cpu()
        return found

    def _slots(self, name: str) -> Tensor:
        layer = int(name.split(".")[1])
        return self._student.slots.store.lut[layer, : self._mix.base.manifest.layer_experts[layer]].long()


def weights_of(pack: PackWeights, name: str) -> dict[str, Tensor]:
    """A weight in float32 by the empty name, or those of a layer's experts by their fields."""
    if not name.startswith("experts."):
        return {"": pack.tensor(name).float()}
    experts = pack.experts(int(name.split(".")[1]))
    return {field.name: experts.field(field.name) for field in pack.manifest.layout.fields}


def _lesson(tokens: Sequence[tuple[int, ...]], indices: Sequence[int], device: torch.device) -> Lesson:
    """Every token of the prompts counts; what follows the last is what the fine-tune is asked for."""
    batch = pad(tokens, indices, device=device)
    rows, places = batch.valid.nonzero(as_tuple=True)
    return Lesson(batch.token_ids, batch.valid, rows, places, torch.zeros_like(rows))


def _tensors(passed: Passed) -> dict[str, Tensor]:
    hidden = {f"hidden.{block}": value.contiguous() for block, value in enumerate(passed.hidden)}
    return {"logits": passed.logits.contiguous(), **hidden}


def _key(job: Job, mix: Mix, learning: Learning) -> str:
    """Names what the coefficients depend on, all but the number of steps: they are the same on the way."""
    models = [pack.manifest.model_id for pack in (mix.base, *mix.tuned)]
    facts = [models, job.data_digests, asdict(replace(learning, steps=0)), mix.layout.counts, mix.alpha.tolist()]
    return blake3.blake3(repr(facts).encode()).hexdigest()


def _save(path: Path, key: str, alpha: Tensor, adam: torch.optim.Adam, done: int) -> None:
    """Coefficients, Adam's means and the steps, whole or not at all."""
    state = adam.state[alpha]
    tensors = {"alpha": alpha.detach(), "step": state["step"], **{mean: state[mean] for mean in MEANS}}
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished, metadata={"key": key, "done": str(done)})
    unfinished.replace(path)


def _restored(path: Path, key: str, alpha: Tensor, adam: torch.optim.Adam) -> int:
    """Steps that a killed run of this has behind it, after taking over what it learnt."""
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
        if facts["key"] != key:
            return 0
        alpha.data.copy_(file.get_tensor("alpha"))
        adam.state[alpha] = {name: file.get_tensor(name) for name in ("step", *MEANS)}
    return int(facts["done"])
