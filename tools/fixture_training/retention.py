"""What pruned models keep: right specialists, the pooled generalist, random sets and wrong specialists."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from premoe_local.tasks import EXACT, OPEN, STORED
from torch import Tensor

from fixture_training.accuracy import matches, perplexity
from fixture_training.pruning import Scores, pooled, random_mask
from fixture_training.stock import Encoded, Stock

Documents = dict[str, list[Encoded]]
RANDOM_DRAWS = 2
OPEN_PROMPTS = 96


def _always(masks: list[Tensor], _task: str) -> list[Tensor]:
    return masks


@dataclass(slots=True)
class Row:
    """One way to prune, at one size."""

    method: str
    percent_kept: float
    exact: dict[str, float]
    """Exact match of each task, in per cent."""
    retained: float
    """Mean over the exact tasks of the share of full accuracy kept, in per cent."""
    prompts: int
    """Prompts a task and mask."""
    perplexity: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Retention:
    """Measures masks against the full model."""

    stock: Stock
    documents: Documents
    """Test documents, as many as each row is to be measured on."""
    full: dict[str, float]
    """Exact match of the whole model on the same documents, in per cent."""
    scores: dict[str, Scores]
    wrong_prompts: int
    advance: Callable[[str], None]

    def rows(self, number: int) -> list[Row]:
        """All ways to prune to `number` experts a layer."""
        stock = self.stock
        together = pooled([self.scores[task] for task in STORED])
        rows = []
        for name, choose in self._choices(number).items():
            rows.append(self._row(f"right specialist, {name}", number, partial(self._specialist, choose)))
            mask = choose(together)
            rows.append(self._row(f"pooled generalist, {name}", number, partial(_always, [mask])))
        rows.sort(key=lambda row: row.method, reverse=True)
        draws = [random_mask(stock.layers, stock.experts, number, seed) for seed in range(RANDOM_DRAWS)]
        rows.append(self._row("random", number, partial(_always, draws)))
        rows.append(self._wrong(number))
        return rows

    def _choices(self, number: int) -> dict[str, Callable[[Scores], Tensor]]:
        """Ways to choose the experts kept, by name."""
        least = self.stock.chosen
        return {
            "PEU": lambda scores: scores.kept(number, "peu"),
            "SEER-soft": lambda scores: scores.kept(number, "seer"),
            "SEER-soft shared over layers": lambda scores: scores.shared(number, least),
        }

    def _specialist(self, choose: Callable[[Scores], Tensor], task: str) -> list[Tensor]:
        return [choose(self.scores[task])]

    def _row(self, method: str, number: int, masks: Callable[[str], list[Tensor]]) -> Row:
        exact = {task: self._exact(task, masks(task)) for task in EXACT}
        stored = {
            task: round(perplexity(self.stock, self.documents[task][:OPEN_PROMPTS], masks(task)[0]), 2) for task in OPEN
        }
        self.advance(f"{method}, {number} experts")
        return Row(method, self._percent(number), exact, self._retained(exact), len(self.documents["add"]), stored)

    def _wrong(self, number: int) -> Row:
        """Every task under the specialists of the other stored tasks."""
        exact = {
            task: self._exact(
                task,
                [self.scores[other].kept(number, "peu") for other in STORED if other != task],
                self.wrong_prompts,
            )
            for task in EXACT
        }
        self.advance(f"wrong specialist, {number} experts")
        return Row("wrong specialist", self._percent(number), exact, self._retained(exact), self.wrong_prompts)

    def _exact(self, task: str, masks: list[Tensor], limit: int | None = None) -> float:
        documents = self.documents[task][:limit]
        hits = sum(sum(matches(self.stock, documents, mask)) for mask in masks)
        return round(100 * hits / (len(documents) * len(masks)), 2)

    def _retained(self, exact: dict[str, float]) -> float:
        shares = [exact[task] / self.full[task] if self.full[task] else 0.0 for task in EXACT]
        return round(100 * sum(shares) / len(shares), 1)

    def _percent(self, number: int) -> float:
        return 100 * number / self.stock.experts
