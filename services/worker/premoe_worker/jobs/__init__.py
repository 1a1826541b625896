"""``premoe-job``: packing, profiling and pattern sets as Kubernetes Jobs. Each ensures its result."""
