"""Calls of tools: what a chat template shows of them, the form they take in text, and back."""
