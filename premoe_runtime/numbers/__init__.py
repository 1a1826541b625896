"""Number formats: which tensors a quantised checkpoint stores of a weight, and how they become the weight again."""
