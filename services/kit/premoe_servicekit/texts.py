"""Text that came as JSON."""

from __future__ import annotations


def whole_text(text: str) -> str:
    """``text`` with U+FFFD for halves of surrogate pairs: JSON can carry what UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
