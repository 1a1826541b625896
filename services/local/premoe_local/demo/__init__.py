"""The demo: the whole path on the small fixture model, measured while it runs."""
