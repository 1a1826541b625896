"""What ends a read that nobody wants any more."""

from __future__ import annotations


class Stopped(Exception):
    """Nobody wants the bytes any more."""
