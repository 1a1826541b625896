"""An engine in a process of its own, so that its step loop shares no interpreter lock with whoever answers requests."""
