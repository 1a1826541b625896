"""Settings of the retrieval service."""

from __future__ import annotations

from typing import Literal

from premoe_servicekit.settings import ServerSettings
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from premoe_runtime.formats.choices import OnUnknown


class RetrievalSettings(ServerSettings):
    """Recognises the task of a prompt from its routing signature (premoe.patterns.v1.PatternService).

    Every flag may also be given as PREMOE_RETRIEVAL_<FLAG>. Traces go where the OTEL_* variables say.
    """

    model_config = SettingsConfigDict(env_prefix="PREMOE_RETRIEVAL_")

    store_url: str
    """Object store that holds patterns, sets and live pointers: file:///folder, s3://bucket/prefix, memory://name."""
    index: Literal["qdrant", "memory"] = "qdrant"
    """Vector index: Qdrant, or a plain matrix in this process. Where Qdrant's engine is not installed: the matrix."""
    qdrant: str = ""
    """Where Qdrant keeps its points: the URL of a server, or a folder for its engine in this process; empty: a folder
    that goes with the process."""
    qdrant_api_key: SecretStr = SecretStr("")
    """API key of a Qdrant server; empty: none."""
    qdrant_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds to wait for a Qdrant server."""
    on_unknown: OnUnknown | None = None
    """Policy for unknown tasks when the request names none; without it, the pattern set's own."""
    live_refresh_s: float = Field(default=1.0, ge=0)
    """Seconds for which a live pointer is trusted before it is read again: how soon other replicas' switches count."""

    record_signatures: int = Field(default=0, ge=0, le=1_000_000)
    """Signatures to keep in memory, the last ones with what was decided on them, for `premoe patterns shadow`: routing
    statistics, no text; 4 bytes a value. 0: none."""
    stale_check_s: float = Field(default=60.0, gt=0)
    """Seconds between looks for live sets whose weights no pack in the object store has any more."""

    @property
    def is_server(self) -> bool:
        """Whether ``qdrant`` is the URL of a server."""
        return self.qdrant.startswith(("http://", "https://"))

    @field_validator("qdrant")
    @classmethod
    def _place(cls, value: str) -> str:
        if value == ":memory:" or ("://" in value and not value.startswith(("http://", "https://"))):
            raise ValueError(
                f"{value!r} is no place for an index; give a folder, the http(s) URL of a server, or nothing"
            )
        return value
