"""The torch library: packs, patterns, expert residency and engines. Knows no gRPC, Kubernetes, Redis or Qdrant."""
