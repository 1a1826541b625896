"""The premoe command and the whole mesh on one machine."""
