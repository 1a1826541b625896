"""The running process: settings, Lease, queue, reconciler, probes."""
