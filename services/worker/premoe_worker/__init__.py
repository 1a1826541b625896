"""WorkerService: generation over hot-swapped experts."""
