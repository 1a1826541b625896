"""OpenAI HTTP in front of workers."""
