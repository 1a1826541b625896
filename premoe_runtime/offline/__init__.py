"""What is worked out before serving: calibration, profiles, patterns, evaluation, sizes."""
