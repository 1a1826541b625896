"""Masks that other tools made, read as patterns of ours."""
