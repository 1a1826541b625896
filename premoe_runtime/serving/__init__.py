"""Requests with a pattern decided: who runs together, whose turn it is, and the loop that carries it out."""
