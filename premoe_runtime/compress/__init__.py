"""Smaller models out of packs: one registry, a file a method, plans as values, one thin writer."""
