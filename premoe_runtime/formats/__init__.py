"""Torch-free values and file formats that every process may import."""
