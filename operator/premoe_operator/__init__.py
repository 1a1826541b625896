"""The Kubernetes operator: turns PrunedModel custom resources into Jobs, workers and their surroundings."""
