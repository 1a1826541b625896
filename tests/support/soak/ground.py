"""What a soak runs on: the fixture model in 32 bits, and pattern sets of it that go live one after another."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from premoe.patterns.v1 import patterns_pb2, patterns_pb2_grpc
from premoe_local import tasks
from premoe_local.demo.calibration import calibration
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.errors import rpc_errors
from support.quantised import configure, read, write

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.pattern import Metric
from premoe_runtime.offline.patterns.build import BuildOptions, build_set
from premoe_runtime.offline.patterns.library import publish
from premoe_runtime.offline.profile.measure import load_full_model, measure_profile
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store

FIXTURE = Path(__file__).parents[2] / "fixtures" / "tiny-moe"
METRICS: tuple[Metric, ...] = ("impact", "peu")
"""What the sets rank by, in turn: each has its own patterns, and so its own answers."""
_INDEXED = 3
"""Sets that the index keeps; older ones are taken out."""


def pack_in_32_bits(folder: Path) -> str:
    """Pack the fixture; in 16 bits an answer would depend on what else is in its batch. Returns the store's URL."""
    checkpoint = shutil.copytree(FIXTURE, folder / "tiny-moe")
    write(checkpoint, {name: tensor.float() for name, tensor in read(checkpoint).items()}, None)
    configure(checkpoint, torch_dtype="float32")
    url = (folder / "store").as_uri()
    write_pack(open_source(str(checkpoint)), open_store(url))
    return url


def profiled(url: str, names: Sequence[str], prompts: int) -> list[Profile]:
    """Profiles of these tasks."""
    model = load_full_model(open_pack(url))
    return [
        measure_profile(model, calibration(tasks.examples(name, "calibration", prompts)), task=name) for name in names
    ]


class Sets:
    """Pattern sets, each of its own id; those of one metric decide alike and have the same patterns."""

    def __init__(self, url: str, profiles: Sequence[Profile]) -> None:
        self._store, self._profiles = open_store(url), profiles
        self._indexed: deque[str] = deque()
        self.made = 0

    def make(self, *, live: bool = False) -> str:
        """Store the next one. Returns its id."""
        # At which budgets retained mass is noted changes a set's id, and nothing that is decided.
        options = BuildOptions(
            metric=METRICS[self.made % len(METRICS)], allocation="uniform", budgets=(Budget(1, 1 + self.made % 64),)
        )
        self.made += 1
        return publish(self._store, build_set(self._profiles, options), live=live)

    def switch(self, address: str) -> None:
        """The next one goes live at the retrieval service; old ones leave its index. Raises what that answers."""
        set_id, weights_id = self.make(), self._profiles[0].weights_id
        self._indexed.append(set_id)
        with blocking_channel(address) as channel, rpc_errors("retrieval"):
            service = patterns_pb2_grpc.PatternServiceStub(channel)
            service.PublishSet(patterns_pb2.PublishSetRequest(set_id=set_id))
            service.SetLive(patterns_pb2.SetLiveRequest(weights_id=weights_id, set_id=set_id))
            while len(self._indexed) > _INDEXED:
                service.DeleteSet(patterns_pb2.DeleteSetRequest(set_id=self._indexed.popleft()))
