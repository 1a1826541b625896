"""The file of API keys: who may ask, by name, each with the digest of its key and its limits.

{"keys": [{"name": "alice", "sha256": "9f86…", "requests_per_minute": 60}]}

Keys are 256 random bits, and the file holds their SHA-256. A slow, salted hash protects what people think up, because
it makes guessing dear; 2**256 cannot be guessed at any speed, and a slow hash would cost every request milliseconds of
the gateway's one thread. So nobody can use what leaks of this file, as long as `premoe keys add` made its keys.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from premoe_runtime.formats.errors import InvalidInput

PREFIX = "premoe-"
MOST_KEYS = 1000
_LARGEST_FILE = 1 << 20

Limit = Annotated[int, Field(ge=1)] | None


class Key(BaseModel):
    """One entry of the file. A limit that is not given is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$")
    """What logs and metrics call its holder."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the key, in hexadecimal."""
    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    """Of prompts and answers together."""
    concurrent: Limit = None
    """Requests at a time."""
    created: str = ""
    """For people."""


class KeyFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    keys: tuple[Key, ...] = Field(max_length=MOST_KEYS, strict=False)

    @property
    def by_name(self) -> dict[str, Key]:
        return {key.name: key for key in self.keys}


def digest(key: bytes) -> str:
    """What the file says of a key."""
    return hashlib.sha256(key).hexdigest()


def new_key() -> str:
    """A key that nobody guesses, in characters that no shell minds."""
    return PREFIX + secrets.token_urlsafe(32)


def read_keys(path: Path) -> KeyFile:
    """Raises InvalidInput (KEYS_INVALID) in one line, which never quotes what stands in the file."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise _invalid(path, f"cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST_FILE:
        raise _invalid(path, f"is larger than {_LARGEST_FILE} bytes")
    try:
        found = KeyFile.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise _invalid(path, f"{place}: {fault['msg']}" if place else fault["msg"]) from None
    for field in ("name", "sha256"):
        for value, count in Counter(getattr(key, field) for key in found.keys).items():
            if count > 1:
                told = f" {value}" if field == "name" else ""
                raise _invalid(path, f"{count} keys have the same {field}{told}")
    return found


def written(file: KeyFile) -> bytes:
    """The file's bytes."""
    return file.model_dump_json(indent=2, exclude_defaults=True).encode() + b"\n"


def _invalid(path: Path, problem: str) -> InvalidInput:
    return InvalidInput(f"keys file {path}: {problem}", reason="KEYS_INVALID")
