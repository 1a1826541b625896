"""Settings of the expert store."""

from __future__ import annotations

from premoe_servicekit.settings import Names, ServerSettings
from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict


class ExpertStoreSettings(ServerSettings):
    """Serves packs out of object storage, through caches in memory, on disk and in Redis
    (premoe.experts.v1.ExpertStoreService, and blobs over HTTP).

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
    redis_write: bool = True
    """Write blobs that came from object storage to Redis. Off where others fill it, or it is small and only read."""
    window_bytes: int = Field(default=32 << 20, ge=1)
    """Bytes of blobs held at a time for one stream; as many more are held ahead."""
    cache_dir: str = ""
    """Folder for blobs, in memory or on a disk, that outlives the process; several stores of a node may share it.
    Empty: one of its own, in memory, that goes with the process."""
    cache_bytes: int = Field(default=4 << 30, ge=1)
    """Bytes of blobs in the node's cache."""
    scrub_bytes_s: int = Field(default=8 << 20, ge=0)
    """Bytes a second of cached copies that are held against their sums in the background; 0: none."""
    memory_bytes: int = Field(default=512 << 20, ge=1)
    """Bytes of blobs beside the cache where it has no room; further ones wait."""
    threads: int = Field(default=16, ge=1)
    """Reads of object storage and Redis at a time."""
    lease_s: float = Field(default=300.0, gt=0)
    """Seconds for which the sources that Resolve names stay valid."""
    http_host: str = ""
    """Address of the port that blobs are read from over HTTP; empty: the same as `host`."""
    http_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of blobs over HTTP, by signed addresses that Resolve names; empty: none. 0 takes a free one, which the ready
    line names. With TLS it is HTTPS with the mesh's certificates."""
    http_plain: bool = False
    """Serve blobs over plain HTTP though the process has TLS: workers check every byte, but others could read along."""
    http_connections: int = Field(default=256, ge=1)
    """Connections to that port at a time, of two file descriptors each; further ones are told to come later."""
    http_idle_s: float = Field(default=30.0, gt=0)
    """Seconds after which a reader that takes nothing of its blob is cut off."""
    bytes_congestion_control: str = ""
    """Congestion control of TCP on that port, e.g. cubic or reno; empty: the system's. BBR paces, which costs half of
    what a fast network carries."""
    advertise: str = ""
    """HOST:PORT under which workers and other replicas reach that port; empty: where it listens."""
    peers: Names = ()
    """HOST:PORT of the byte ports of all replicas, or of a name in DNS behind which they are; looked up every few
    seconds. Each blob then belongs to one of them, so that all together read it once."""
    url_key: str = ""
    """File with the keys that sign addresses, one a line; the first signs, all are taken. The same for all replicas.
    Empty: a random key of this process."""

    @field_validator("http_port", mode="before")
    @classmethod
    def _no_http(cls, value: object) -> object:
        return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value
