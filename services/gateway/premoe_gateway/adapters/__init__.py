"""gRPC clients behind the gateway's ports."""
