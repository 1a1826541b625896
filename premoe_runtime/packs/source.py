"""Where a checkpoint comes from: a folder, an object store prefix, or a model hub."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import blake3

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.packs.hub import HUB, open_repository
from premoe_runtime.storage import ObjectInfo, Store, open_store
from premoe_runtime.storage.failures import mapped_errors

PACKER_VERSION = 1
"""Part of every staging key: raise it when the bytes that the packer writes change."""

COMPRESSION_FILE = "premoe_compression.json"
"""What was done to which model, in packs and checkpoints that came of a compression."""
CHAT_TEMPLATES = "additional_chat_templates/"
SKELETON_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    COMPRESSION_FILE,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_VOCABULARIES = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("vocab.txt",))
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


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
    def origin(self) -> str:
        """``url`` for others to read: of a folder its name only, since its path tells of the packing machine."""
        return unquote(self.url.rsplit("/", 1)[-1]) if self.url.startswith("file://") else self.url

    @property
    def skeleton_files(self) -> list[str]:
        """Config, tokenizer and template files, by name."""
        return [info.path for info in self.files if is_skeleton_file(info.path)]


def check_tokenizer(source: Source) -> None:
    """Raise InvalidInput (reason TOKENIZER_MISSING) when no file of a checkpoint holds a vocabulary.

    What is no checkpoint at all is named by whoever reads it.
    """
    names = source.skeleton_files
    if "config.json" in names and not has_vocabulary(names):
        raise InvalidInput(
            f"{source.url} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json with merges.txt, vocab.txt); "
            "add the model's own, or allow it with --without-tokenizer",
            reason="TOKENIZER_MISSING",
        )


def has_vocabulary(names: Collection[str]) -> bool:
    """Whether a tokenizer can be made of files of these names."""
    return any(set(needed) <= set(names) for needed in _VOCABULARIES)


def is_skeleton_file(path: str) -> bool:
    """Whether a pack keeps this file of a checkpoint; what operating systems put beside templates is none."""
    if path.rpartition("/")[2].startswith("."):
        return False
    return path in SKELETON_FILES or (path.startswith(CHAT_TEMPLATES) and path.endswith(".jinja"))


def open_source(text: str) -> Source:
    """Open ``DIR``, ``file://``, ``s3://``, ``memory://`` or ``hf://org/name[@revision]``.

    Raises NotFound when nothing is there, InvalidInput on a bad address, Unavailable when it does not answer.
    """
    if text.startswith(HUB):
        repository = open_repository(text)
        return Source(repository.url, repository.store, relevant(repository.files), repository.commit)
    store = open_store(text)
    if store.local_root is not None:
        with mapped_errors(store.url):
            _check_folder(text, store.local_root)
    elif not store.list_names():
        raise NotFound(f"{text}: no such folder, or an empty one", reason="CHECKPOINT_NOT_FOUND")
    return Source(store.url, store, relevant(store.list()))


def relevant(files: Iterable[ObjectInfo]) -> tuple[ObjectInfo, ...]:
    """The files that packing looks at, by name."""
    return tuple(sorted((info for info in files if _matters(info.path)), key=lambda info: info.path))


def _matters(path: str) -> bool:
    return is_skeleton_file(path) or ("/" not in path and path.endswith(_WEIGHTS))


def _check_folder(text: str, folder: Path) -> None:
    """Raise NotFound for a folder that cannot hold a checkpoint's files, with what is there instead."""
    if folder.is_file():
        raise NotFound(f"{text} is a file; give the folder of the checkpoint", reason="CHECKPOINT_NOT_FOUND")
    if not folder.is_dir() or not any(folder.iterdir()):
        raise NotFound(
            f"{text}: {_dead_link(folder) or 'no such folder, or an empty one'}", reason="CHECKPOINT_NOT_FOUND"
        )
    for place in sorted(folder.iterdir()):
        if _matters(place.name) and (dead := _dead_link(place)):
            raise NotFound(f"{text}: {place.name} {dead}", reason="DEAD_LINK")
    if not (folder / "config.json").exists() and (snapshots := sorted(folder.glob("snapshots/*/config.json"))):
        found = snapshots[-1].parent.relative_to(folder)
        raise NotFound(f"{text} is a hub's cache; give a snapshot in it, as {found}", reason="CHECKPOINT_NOT_FOUND")


def _dead_link(place: Path) -> str:
    """What is wrong with a link that leads nowhere; empty for all else."""
    if not place.is_symlink() or place.exists():
        return ""
    return (
        f"is a link to {os.readlink(place)}, which is not there; mount or copy what the links lead to as well "
        "(of a hub's cache the whole folder of the model)"
    )
