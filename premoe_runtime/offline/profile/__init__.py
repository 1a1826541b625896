"""Profiles: mergeable statistics of what the true router selected and weighted on one task's calibration text."""
