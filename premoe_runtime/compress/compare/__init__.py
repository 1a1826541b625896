"""Methods beside each other at equal bytes, and beside retrieval: what to run, as values, a thin executor, figures."""
