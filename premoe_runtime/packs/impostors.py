"""Files that are not what their name says: what a clone or a download leaves behind where a model's file should be."""

from __future__ import annotations

from premoe_runtime.formats.errors import InvalidInput

START_BYTES = 512
"""How much of a file's beginning tells what it is."""

_POINTERS = (b"version https://git-lfs", b"# xet version")
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
_SHORTEST_TEXT = 9
"""Bytes: a shorter file is no text to be quoted, and no weights either."""


def refuse_impostor(start: bytes, where: str) -> None:
    """Raise InvalidInput when a file begins like a Git LFS pointer (LFS_POINTER) or a web page (WEB_PAGE)."""
    beginning = start[:START_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if beginning.startswith(_POINTERS):
        raise InvalidInput(
            f"{where} is a Git LFS pointer, not the file itself; run `git lfs pull` in the clone, "
            "or download the model again",
            reason="LFS_POINTER",
        )
    if beginning.startswith(_PAGES):
        raise InvalidInput(
            f"{where} is a web page (HTML or XML), not the file itself; download it again, with a token where the "
            "model asks for one",
            reason="WEB_PAGE",
        )


def refuse_non_weights(start: bytes, where: str) -> None:
    """``refuse_impostor`` for a file that should be safetensors: other text (TEXT_FILE) and GGUF are named, too."""
    refuse_impostor(start, where)
    if start.startswith(b"GGUF"):
        raise InvalidInput(f"{where} is a GGUF file; give the model's safetensors checkpoint", reason="GGUF_REFUSED")
    words = start[:START_BYTES].decode("utf-8", errors="ignore").split()
    # A header's length has zero bytes, which are not printable.
    if len(start) >= _SHORTEST_TEXT and "".join(words).isprintable():
        raise InvalidInput(
            f"{where} is text ({' '.join(words)[:60]!r}), not weights; download it again", reason="TEXT_FILE"
        )
