"""A plug-in for vLLM, found by its entry point: experts in slots, a restricted router, swaps in place.

Files that import vllm are themselves imported late, by ``plugin``; the others run, and are tested, without it.
"""
