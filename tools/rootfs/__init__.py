"""Builds container images without a registry: this Python, its libraries and one deployable, layer by layer."""
