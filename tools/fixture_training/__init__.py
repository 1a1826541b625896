"""Training, export and measurement of the tiny fixture models (development only)."""
