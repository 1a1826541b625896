"""Who may ask, and how much: API keys from a file, what each has used, and the limits on it."""
