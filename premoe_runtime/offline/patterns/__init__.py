"""From profiles to patterns, exemplars, cutoffs and the set that freezes them together."""
