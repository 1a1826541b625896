"""Packs: a checkpoint as skeleton, expert blobs and a manifest in object storage."""
