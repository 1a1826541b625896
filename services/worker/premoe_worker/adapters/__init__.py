"""gRPC clients of the worker: expert store and retrieval."""
