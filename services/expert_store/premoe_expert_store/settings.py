"""Settings of the expert store."""

from __future__ import annotations

from premoe_servicekit.settings import ServerSettings
from pydantic import Field
from pydantic_settings import SettingsConfigDict


class ExpertStoreSettings(ServerSettings):
    """Serves packs out of object storage, through an optional Redis cache (premoe.experts.v1.ExpertStoreService).

    Every flag may also be given as PREMOE_EXPERT_STORE_<FLAG>. Traces go where the OTEL_* variables say.
    """

    model_config = SettingsConfigDict(env_prefix="PREMOE_EXPERT_STORE_")

    store_url: str
    """Object store that holds packs under models/: file:///folder, s3://bucket/prefix, memory://name."""
    redis_url: str | None = None
    """Cache of expert blobs, e.g. redis://host:6379/0; without it every blob comes from object storage."""
    redis_timeout_s: float = Field(default=1.0, gt=0)
    """Seconds to wait for Redis before a read goes to object storage."""
    redis_cool_down_s: float = Field(default=5.0, ge=0)
    """Seconds for which Redis is left alone after it failed."""
    window_bytes: int = Field(default=32 << 20, ge=1)
    """Bytes of blobs held at a time for one stream; as many more are held ahead."""
    cache_bytes: int = Field(default=4 << 30, ge=1)
    """Bytes of blobs in the node's cache, files in memory that go with the process."""
    memory_bytes: int = Field(default=512 << 20, ge=1)
    """Bytes of blobs beside the cache where it has no room; further ones wait."""
    threads: int = Field(default=16, ge=1)
    """Reads of object storage and Redis at a time."""
    lease_s: float = Field(default=300.0, gt=0)
    """Seconds for which the sources that Resolve names stay valid."""
