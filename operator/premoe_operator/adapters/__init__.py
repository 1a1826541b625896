"""What talks to the outside: the Kubernetes API, the watches, the expert store."""
