"""What is so: each module asks one thing, and judges nothing."""
