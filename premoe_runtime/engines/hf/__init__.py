"""The transformers engine: reference and light default."""
