"""What that means: pure functions from facts to findings."""
