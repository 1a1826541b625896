"""The task signature of a prompt, from a few weights of its own."""
