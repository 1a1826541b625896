"""A comparison as one document of figures with intervals: what tables, pictures and readers take. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from premoe_runtime.compress.compare.cells import Comparison, Measured, Refused, Size
from premoe_runtime.compress.compare.entrants import PEERS
from premoe_runtime.compress.share import Share
from premoe_runtime.offline.evaluation.statistics import LEVEL, RESAMPLES, Ratio
from premoe_runtime.offline.evaluation.tables import COUNTED, Document, Found, judged, kl, retained, rounded

FORMAT = "premoe-comparison/1"


def figures(comparison: Comparison) -> Document:
    """Everything that was measured. Differences to the peers are paired: same seeds, same prompts."""
    return _Figures(comparison).document()


@dataclass(frozen=True, slots=True)
class _Figures:
    found: Comparison

    def document(self) -> Document:
        found, manifest = self.found, self.found.manifest
        whole = Size.of(manifest)
        return {
            "format": FORMAT,
            "interval": {"level": LEVEL, "resamples": RESAMPLES, "over": "calibration seeds x test prompts"},
            "model": {
                "model_id": manifest.model_id,
                "weights_id": manifest.weights_id,
                "family": manifest.family,
                "layers": manifest.num_layers,
                "experts": manifest.num_experts,
                "width": whole.width,
                "top_k": manifest.top_k,
                "experts_bytes": whole.num_bytes,
                "skeleton_bytes": manifest.skeleton_bytes,
                "probe_bytes": found.probe_bytes,
            },
            "seeds": found.seeds,
            "counted": self.counted,
            "full": {task: judged(self.full(task), self.full(task), counted=False) for task in found.tasks},
            "budgets": [self.budget(share) for share in found.shares],
            "left_out": [{"method": one.name, "why": one.why} for one in found.left_out],
        }

    @property
    def counted(self) -> list[str]:
        return [task for task, full in self.found.full.items() if 100 * full.right.mean() >= COUNTED]

    def full(self, task: str) -> Found:
        return [[self.found.full[task]]]

    def budget(self, share: Share) -> Document:
        rows = {name: row for (name, at), row in self.found.rows.items() if at == share}
        return {
            "share": str(share),
            "percent": round(100 * share.part, 2),
            "bytes": int(share.part * Size.of(self.found.manifest).num_bytes),
            "entrants": [
                {"name": name, "source": self.found.sources.get(name, ""), **self.entrant(row, rows)}
                for name, row in rows.items()
            ],
        }

    def entrant(self, row: Sequence[Measured] | Refused, rows: Mapping[str, Sequence[Measured] | Refused]) -> Document:
        if isinstance(row, Refused):
            return {"refused": row.why}
        return {
            **self.size(row),
            "retained": self.retained(row),
            "kl": self.kl(row),
            "tasks": {
                task: judged(_of(row, task), self.full(task), counted=task in self.counted) for task in self.found.tasks
            },
            "over": {peer: self.over(row, rows.get(peer)) for peer in PEERS},
        }

    def size(self, row: Sequence[Measured]) -> Document:
        """The largest of all seeds; how it is made is the first one's."""
        sizes, memories = [one.made.size for one in row], [one.made.memory for one in row]
        most = max(size.num_bytes for size in sizes)
        return {
            "bytes": most,
            "percent": round(100 * most / Size.of(self.found.manifest).num_bytes, 2),
            "skeleton_bytes": max(size.skeleton_bytes for size in sizes),
            "experts": list(sizes[0].experts),
            "width": sizes[0].width,
            "seconds": round(sum(one.made.seconds for one in row) / len(row), 1),
            "memory": None if None in memories else max(one for one in memories if one is not None),
        }

    def retained(self, row: Sequence[Measured], minus: Sequence[Measured] = ()) -> list[float] | None:
        """Mean over the tasks that count; None where none does."""
        if not self.counted:
            return None
        return rounded(self._retained(row), self._retained(minus) if minus else ())

    def kl(self, row: Sequence[Measured], minus: Sequence[Measured] = ()) -> list[float]:
        each, less = ([kl(_of(rows, task)) for task in self.found.tasks] if rows else [] for rows in (row, minus))
        return rounded(each, less, digits=4)

    def over(self, row: Sequence[Measured], peer: Sequence[Measured] | Refused | None) -> Document | None:
        """What it keeps more than a peer, and how much farther from the full model it is; of itself nothing."""
        if peer is None or isinstance(peer, Refused) or peer is row:
            return None
        return {"retained": self.retained(row, peer), "kl": self.kl(row, peer)}

    def _retained(self, row: Sequence[Measured]) -> list[Ratio]:
        return [retained(_of(row, task), self.full(task)) for task in self.counted]


def _of(row: Sequence[Measured], task: str) -> Found:
    return [[one.answers[task] for one in row]]
