"""One small object-store client for every process: local folder, memory or S3 behind a URL."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from obstore.store import MemoryStore, S3Store

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.storage.aws_profile import endpoint_of, profile_options
from premoe_runtime.storage.base import READ_PART_BYTES, WRITE_PART_BYTES, ObjectInfo, Store, Writer
from premoe_runtime.storage.failures import mapped_errors
from premoe_runtime.storage.local import LocalStore

__all__ = ["READ_PART_BYTES", "WRITE_PART_BYTES", "LocalStore", "ObjectInfo", "Store", "Writer", "open_store"]

_RETRY = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}
_memory_stores: dict[str, MemoryStore] = {}


def open_store(url: str) -> Store:
    """Open ``file:///folder``, a plain folder, ``memory://name`` or ``s3://bucket/prefix``.

    S3 takes the usual ``AWS_*`` variables (``AWS_ENDPOINT_URL``, ``AWS_ALLOW_HTTP``, ``AWS_PROFILE``, …). Memory stores
    of one name are shared within the process. Nothing is created or contacted yet. Raises InvalidInput on a bad URL
    or profile.
    """
    if not url:
        raise InvalidInput("the object store URL is empty; give file://, s3:// or a folder", reason="STORE_URL")
    if "://" not in url:
        return LocalStore(Path(url).absolute())
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise InvalidInput(f"{url}: an object store URL has no query or fragment", reason="STORE_URL")
    if parts.scheme == "file":
        return LocalStore(_local_path(url))
    if parts.scheme == "memory":
        return Store(url, _memory_stores.setdefault(f"{parts.netloc}{parts.path}".strip("/"), MemoryStore()))
    if parts.scheme == "s3":
        if not parts.netloc:
            raise InvalidInput(f"{url}: no bucket; write s3://bucket/prefix", reason="STORE_URL")
        options = profile_options(os.environ)
        _check_endpoint(endpoint_of(os.environ) or options.get("endpoint", ""))
        with mapped_errors(url):
            prefix = unquote(parts.path).strip("/") or None
            return Store(url, S3Store(parts.netloc, prefix=prefix, retry_config=_RETRY, **options))
    raise InvalidInput(f"{url}: unknown scheme {parts.scheme!r}; use file, memory or s3", reason="STORE_URL")


def _check_endpoint(endpoint: str) -> None:
    """Raise InvalidInput for an unencrypted endpoint that nobody allowed: the client's own words do not say that."""
    if endpoint.startswith("http://") and not os.environ.get("AWS_ALLOW_HTTP"):
        raise InvalidInput(
            f"the S3 endpoint {endpoint} is not encrypted; set AWS_ALLOW_HTTP=true to use it", reason="STORE_URL"
        )


def _local_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise InvalidInput(f"{url}: write file:///absolute/path", reason="STORE_URL")
    return Path(unquote(parts.path))
