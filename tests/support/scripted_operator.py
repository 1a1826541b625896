"""`premoe-operator` with an expert store and workers read from files, and on wish rendering as a later version would.

On loopback there is no cluster DNS, so the operator could not reach them by their Services' names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

from premoe_operator.api.reasons import Reason
from premoe_operator.children import Inputs, worker_template
from premoe_operator.decide import rollout
from premoe_operator.decide.observed import PackFacts, StoreFailure, WorkerPreload
from premoe_operator.run import cli

FACTS_VARIABLE = "SCRIPTED_STORE_FACTS"
PRELOADS_VARIABLE = "SCRIPTED_WORKERS_PRELOADS"
NEXT_VERSION_VARIABLE = "SCRIPTED_OPERATOR_NEXT"


class FileStore:
    """Knows the packs that the JSON file lists by id; a file that is not there is a store that does not answer."""

    def __init__(
        self, own_address: str = "", *, timeout_s: float = 0.0, tls: object = None, path: Path | None = None
    ) -> None:
        self.path = path or Path(os.environ[FACTS_VARIABLE])
        self.calls = 0

    async def facts(self, address: str, model_id: str) -> PackFacts | StoreFailure:
        self.calls += 1
        try:
            packs: dict[str, dict[str, Any]] = json.loads(self.path.read_text())
        except FileNotFoundError:
            return StoreFailure(Reason.STORE_UNREACHABLE, f"the expert store {address} did not answer: refused")
        if model_id not in packs:
            return StoreFailure(Reason.MANIFEST_NOT_FOUND, f"the expert store {address} has no {model_id}: not there")
        return PackFacts(model_id=model_id, **packs[model_id])


class FileWorkers:
    """Says for each host what the JSON file lists; other workers have not read their list yet."""

    def __init__(self, *, timeout_s: float, tls: object) -> None:
        self.path = Path(os.environ[PRELOADS_VARIABLE])

    async def preloads(self, host: str, port: int, *, encrypted: bool) -> tuple[WorkerPreload, ...]:
        said = json.loads(self.path.read_text()) if self.path.exists() else {}
        return tuple(
            WorkerPreload(tuple(worker["wanted"]), tuple(worker["done"]), worker["problem"])
            for worker in said.get(host, [{"wanted": [], "done": [], "problem": ""}])
        )


def main() -> None:
    """The entry point, with the store and the workers replaced."""
    patch.object(cli, "GrpcExpertStore", FileStore).start()
    patch.object(cli, "GrpcWorkers", FileWorkers).start()
    if os.environ.get(NEXT_VERSION_VARIABLE):
        patch.object(rollout, "worker_template", _next_template).start()
    cli.main()


def _next_template(inputs: Inputs) -> dict[str, Any]:
    """Renders one more variable, as a later version might."""
    template = worker_template(inputs)
    template["spec"]["containers"][0]["env"].append({"name": "PREMOE_WORKER_NEW_IN_NEXT_VERSION", "value": "1"})
    return template
