"""Signed addresses of blobs: whoever got one from Resolve may read that blob until it ends, and no other.

The signature covers everything that says which blob is meant and until when. The method is not signed: HEAD and GET
with any range are the same permission.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from premoe_servicekit.followed import Followed

from premoe_runtime.formats.errors import Forbidden, InvalidInput
from premoe_runtime.formats.ids import ExpertId, is_tenant

BLOBS = "/v1/blobs/"
SKEW_S = 30
"""Seconds that an address is taken beyond its end: clocks of stores that share a key may differ by so much."""
MIN_KEY_BYTES = 32

_DOMAIN = "premoe-blob-1"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
_NUMBER = re.compile(r"[0-9]{1,15}")

Keys = Callable[[], tuple[bytes, ...]]
"""The keys of now: the first signs, all of them are taken."""


class BlobName(NamedTuple):
    """A blob as an address names it. ``tenant`` is whose pack it is of; empty: a shared one."""

    digest: str
    model_id: str
    expert: ExpertId
    tenant: str = ""


class Signer:
    """Writes and checks addresses. ``clock`` gives seconds since 1970. Safe from any thread."""

    def __init__(self, keys: Keys, clock: Callable[[], float] = time.time) -> None:
        self._keys, self._clock = keys, clock

    def path(self, name: BlobName, until: int) -> str:
        """Path and query of ``name`` that are good until ``until``, seconds since 1970. All of it is plain ASCII."""
        layer, expert = name.expert
        tenant = f"&tenant={name.tenant}" if name.tenant else ""
        return (
            f"{BLOBS}{name.digest}?model={name.model_id}&layer={layer}&expert={expert}{tenant}&until={until}"
            f"&sig={_signature(self._keys()[0], name, until)}"
        )

    def check(self, digest: str, query: Mapping[str, str]) -> BlobName:
        """The blob that an address names.

        Raises InvalidInput (URL_INVALID) for one that could never work, Forbidden for a signature that is not ours
        (URL_FORGED) or has ended (URL_EXPIRED).
        """
        name = BlobName(
            _matching(_DIGEST, "digest", digest),
            _matching(_ID, "model", query.get("model", "")),
            ExpertId(_number(query, "layer"), _number(query, "expert")),
            _tenant(query.get("tenant", "")),
        )
        until = _number(query, "until")
        signature = query.get("sig", "").encode()
        # Every key is tried, whatever the outcome: how long it takes tells nothing.
        right = [hmac.compare_digest(_signature(key, name, until).encode(), signature) for key in self._keys()]
        if not any(right):
            raise Forbidden("the signature of this address is not of this store; resolve again", reason="URL_FORGED")
        late_s = self._clock() - until
        if late_s > SKEW_S:
            raise Forbidden(f"this address ended {late_s:.0f} s ago; resolve again", reason="URL_EXPIRED")
        return name


def keys_of(path: Path | None) -> Keys:
    """The keys of a file, one a line, read again when it changes; without a file a random one of this process.

    Raises InvalidInput (URL_KEY_INVALID) when the file cannot be read or holds a key of fewer than 32 bytes, or none.
    """
    if path is None:
        random = (secrets.token_bytes(MIN_KEY_BYTES),)
        return lambda: random
    followed: Followed[tuple[bytes, ...]] = Followed("key file", (path,), lambda: _read(path), reason="URL_KEY_INVALID")
    return followed.current


def _read(path: Path) -> tuple[bytes, ...]:
    try:
        keys = tuple(line.strip() for line in path.read_bytes().splitlines() if line.strip())
    except OSError as error:
        raise InvalidInput(f"key file {path} cannot be read: {error.strerror}", reason="URL_KEY_INVALID") from None
    if not keys or min(map(len, keys)) < MIN_KEY_BYTES:
        raise InvalidInput(
            f"key file {path} must hold keys of at least {MIN_KEY_BYTES} bytes, one a line; "
            "make one with: openssl rand -hex 32",
            reason="URL_KEY_INVALID",
        )
    return keys


def _signature(key: bytes, name: BlobName, until: int) -> str:
    # None of the parts can hold a line break, so no two names have one text.
    text = "\n".join((_DOMAIN, name.digest, name.model_id, *map(str, name.expert), name.tenant, str(until)))
    return hmac.digest(key, text.encode(), "sha256").hex()


def _matching(pattern: re.Pattern[str], what: str, value: str) -> str:
    if not pattern.fullmatch(value):
        raise InvalidInput(f"{what} {value[:80]!r} is none of an address of a blob", reason="URL_INVALID")
    return value


def _tenant(name: str) -> str:
    if name and not is_tenant(name):
        raise InvalidInput(f"tenant {name[:80]!r} is none of an address of a blob", reason="URL_INVALID")
    return name


def _number(query: Mapping[str, str], what: str) -> int:
    return int(_matching(_NUMBER, what, query.get(what, "")))
