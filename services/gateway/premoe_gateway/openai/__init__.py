"""What OpenAI's API looks like: bodies in, answers out, and their description. Knows no network."""
