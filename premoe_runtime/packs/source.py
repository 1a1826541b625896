"""Where a checkpoint comes from: a folder, an object store prefix, or a model hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import blake3
from obstore.store import HTTPStore
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from premoe_runtime.formats.errors import InvalidInput, NotFound, Unavailable
from premoe_runtime.storage import ObjectInfo, Store, open_store
from premoe_runtime.storage.failures import mapped_errors

PACKER_VERSION = 1
"""Part of every staging key: raise it when the bytes that the packer writes change."""

DEFAULT_HUB = "https://huggingface.co"
CHAT_TEMPLATES = "additional_chat_templates/"
SKELETON_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint folder behind a store; ``files`` are those of it that matter, ``revision`` its commit if known."""

    url: str
    store: Store
    files: tuple[ObjectInfo, ...]
    revision: str = ""

    @property
    def key(self) -> str:
        """Names the source's present state: location, file names, sizes and stamps, and the packer's version."""
        stamps = [[info.path, info.size, info.etag, info.modified] for info in self.files]
        text = json.dumps([PACKER_VERSION, self.url, stamps], separators=(",", ":"))
        return blake3.blake3(text.encode()).hexdigest()[:32]

    @property
    def skeleton_files(self) -> list[str]:
        """Config, tokenizer and template files, by name."""
        return [info.path for info in self.files if is_skeleton_file(info.path)]


def is_skeleton_file(path: str) -> bool:
    return path in SKELETON_FILES or (path.startswith(CHAT_TEMPLATES) and path.endswith(".jinja"))


def open_source(text: str) -> Source:
    """Open ``DIR``, ``file://``, ``s3://``, ``memory://`` or ``hf://org/name[@revision]``.

    Raises NotFound when nothing is there, InvalidInput on a bad address, Unavailable when it does not answer.
    """
    if text.startswith("hf://"):
        return _open_hub(text)
    store = open_store(text)
    if not store.list_names():
        raise NotFound(f"{text}: no such folder, or an empty one", reason="CHECKPOINT_NOT_FOUND")
    return Source(store.url, store, _relevant(store.list()))


def _relevant(files: Iterable[ObjectInfo]) -> tuple[ObjectInfo, ...]:
    return tuple(
        info for info in files if is_skeleton_file(info.path) or ("/" not in info.path and info.path.endswith(_WEIGHTS))
    )


class _HubInfo(BaseModel):
    model_config = ConfigDict(extra="ignore")

    sha: str = Field(pattern=r"^[0-9a-f]{7,64}$")


class _HubFile(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: str
    path: str
    size: int = 0
    oid: str = ""


_HUB_FILES = TypeAdapter(list[_HubFile])


def _open_hub(text: str) -> Source:
    """A model repository, pinned to the commit that its revision names now; ranged reads follow the hub's redirects.

    ``HF_ENDPOINT`` names another hub, ``HF_TOKEN`` is sent as bearer token.
    """
    match = _REPOSITORY.fullmatch(text.removeprefix("hf://").rstrip("/"))
    if match is None:
        raise InvalidInput(f"{text}: write hf://org/name or hf://org/name@revision", reason="STORE_URL")
    name, revision = match[1], match[2] or "main"
    endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_HUB).rstrip("/")
    if not re.fullmatch(r"https?://[^/]+.*", endpoint):
        raise InvalidInput(f"HF_ENDPOINT {endpoint!r} is no http:// or https:// address", reason="STORE_URL")
    api = _http_store(f"{endpoint}/api/models/{name}")
    try:
        commit = _HubInfo.model_validate_json(api.get(f"revision/{revision}")).sha
        files = _HUB_FILES.validate_json(api.get(f"tree/{commit}"))
    except NotFound as error:
        raise NotFound(f"{text}: no such model or revision at {endpoint}", reason="CHECKPOINT_NOT_FOUND") from error
    except ValidationError as error:
        raise Unavailable(f"{api.url}: this is not a model hub's answer", reason="HUB_ANSWER") from error
    found = [ObjectInfo(file.path, file.size, file.oid) for file in files if file.type == "file"]
    store = _http_store(f"{endpoint}/{name}/resolve/{commit}")
    return Source(f"hf://{name}", store, _relevant(sorted(found, key=lambda info: info.path)), commit)


def _http_store(url: str) -> Store:
    token = os.environ.get("HF_TOKEN")
    options: dict[str, object] = {"allow_http": url.startswith("http://"), "timeout": timedelta(minutes=5)}
    if token:
        options["default_headers"] = {"authorization": f"Bearer {token}"}
    retry = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
    with mapped_errors(url):
        return Store(url, HTTPStore.from_url(url, client_options=options, retry_config=retry))
