"""Load on an OpenAI endpoint, ours or another's, and what its answers took."""
