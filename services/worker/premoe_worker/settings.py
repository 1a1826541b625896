"""Settings of the worker: `PREMOE_WORKER_*` variables and flags."""

from __future__ import annotations

import json
from typing import Any, Literal

from premoe_dataplane.plan import SCHEMES, Scheme
from premoe_servicekit.settings import Names, ServerSettings
from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from premoe_runtime.formats.choices import Allocation, EngineName, OnUnknown
from premoe_runtime.formats.ids import bare_digest


def parse_arguments(text: str) -> dict[str, Any]:
    """Raises ValueError for what is no JSON object."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError('must be a JSON object of vLLM\'s arguments, for example {"enforce_eager": false}')
    return found


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


class WorkerSettings(ServerSettings):
    """Generation over hot-swapped experts."""

    model_config = SettingsConfigDict(env_prefix="PREMOE_WORKER_")

    store: str
    """Address of the expert store."""
    store_server_name: str = ""
    """Name in its certificate, where it is of another release; empty: as `tls_server_name` says."""
    fetch_schemes: str = ",".join(SCHEMES)
    """Ways in which experts may be read, with commas between them: `file` (the store's cache in a folder that both
    see), `http` (ranges from the store), `redis` and `object` (with their URLs), `grpc` (the store's RPC)."""
    redis_url: str = ""
    """The expert stores' Redis, so that experts are read from there directly: redis:// or rediss:// addresses with
    commas between them, or one redis+sentinel:// or redis+cluster://. Empty: never."""
    object_store_url: str = ""
    """Object store with the packs, read directly when no expert store answers, and where one says so: file:// or s3://.
    Empty: never."""
    background_rate_bytes: float | None = Field(default=None, gt=0)
    """Most bytes a second at which experts that no request waits for come; default: no limit."""
    retrieval: str = ""
    """Address of the retrieval service; without one only the full model can be run."""
    retrieval_server_name: str = ""
    """Name in its certificate, where it is of another release; empty: as `tls_server_name` says."""
    model_id: str = ""
    """Pack to serve, with or without `blake3:` in front; empty when the store has exactly one."""
    model_name: str = ""
    """Name under which the model is served; empty: the last part of where its checkpoint came from."""
    budget: str
    """Experts activated per token out of experts kept per layer on average, for example 4/16."""
    allocation: Allocation = "shared"
    """How the experts of a budget and the slots spread over the layers: `shared` as the live pattern set says, or
    `uniform`, equally many in each."""
    slots: int | None = Field(default=None, ge=1)
    """Expert slots per layer, on average; default: the largest budget's and the spare ones, at most all experts."""
    spare: int = Field(default=2, ge=0)
    """Slots per layer, on average, beside those of a budget, so that the next pattern can come in while one runs."""
    generalist_budget: str = ""
    """Budget of the generalist; empty: the same as `budget`."""
    deny: Names = ()
    """Tasks of the live pattern set whose own experts are masked out for every request, whatever it asks; requests may
    deny more. Needs `retrieval`."""
    on_unknown: OnUnknown = "generalist"
    """What runs when no stored task fits; `full` needs slots for all experts."""
    host_memory_bytes: int | None = Field(default=None, ge=0)
    """Host memory for expert blobs outside slots; default: a blob a slot, within a quarter of free memory."""
    max_sequences: int = Field(default=8, ge=1)
    """Sequences in one batch; each has room for the whole context in the KV cache."""
    context_length: int | None = Field(default=None, ge=8)
    """Longest prompt and answer together, in tokens; default: 4096, or the model's own limit if less."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of an answer whose request names no number; default: all that the context has room for."""
    queue_limit: int = Field(default=256, ge=0)
    """Requests that may wait; more are refused with RESOURCE_EXHAUSTED."""
    copy_rate_bytes: float | None = Field(default=None, gt=0)
    """Most bytes a second that a swap copies while sequences decode; default: no limit."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the model; default: torch's own choice."""
    engine: EngineName = "hf"
    """What the model runs on: transformers (`hf`), vLLM in a process of its own, or vLLM where it is installed and runs
    the model, and transformers elsewhere (`auto`)."""
    engine_place: Literal["thread", "process"] = "thread"
    """Where `hf` runs: in threads of this process, or in a process of its own beside the one that answers."""
    engine_arguments: str = ""
    """Arguments of vLLM's own, a JSON object, for example `{"enforce_eager": false}`; those that would break slots, or
    that other settings decide, are refused by name."""
    residency_dir: str = ""
    """Folder with `residency.json`, {"preload": ["task", …]}: tasks whose experts come in before they are asked for, as
    far as slots reach. Watched, so that a change needs no restart. Empty: none."""
    store_wait_s: float = Field(default=30.0, ge=0)
    """Seconds to wait at the start for an expert store, and then for a retrieval service, that does not answer yet."""
    device: str = "cpu"
    """Torch device of the model and its expert slots."""
    admin_host: str = "127.0.0.1"
    """Address of the admin service."""
    admin_port: int = Field(default=0, ge=0, le=65535)
    """Port of the admin service; 0 takes a free one, which the ready line names."""
    drain_s: float = Field(default=30.0, ge=0)
    """Seconds that Drain waits when the caller names no time."""

    @field_validator("engine_arguments")
    @classmethod
    def _is_object(cls, value: str) -> str:
        parse_arguments(value)
        return value

    @property
    def vllm_arguments(self) -> dict[str, Any]:
        """``engine_arguments``, read."""
        return parse_arguments(self.engine_arguments)

    @field_validator("fetch_schemes")
    @classmethod
    def _are_schemes(cls, value: str) -> str:
        unknown = [one for one in _listed(value) if one not in SCHEMES]
        if unknown or not _listed(value):
            raise ValueError(f"must be some of {', '.join(SCHEMES)}, with commas between them")
        return value

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """``fetch_schemes``, read."""
        return tuple(scheme for scheme in SCHEMES if scheme in _listed(self.fetch_schemes))

    @model_validator(mode="after")
    def _denies_what_it_can_tell(self) -> WorkerSettings:
        if self.deny and not self.retrieval:
            raise ValueError("deny needs retrieval: without one, no worker knows which experts a task has")
        return self

    @field_validator("model_id")
    @classmethod
    def _bare(cls, value: str) -> str:
        return bare_digest(value)
