"""What patterns keep of a model: prompts with answers under masks, what to measure, and figures with intervals."""
