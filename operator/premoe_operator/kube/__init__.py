"""Kubernetes: kinds and objects, the client, the watches and what they have shown, the Lease."""
