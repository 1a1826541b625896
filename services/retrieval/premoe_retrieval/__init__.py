"""PatternService: recognises the task of a prompt from its routing signature."""
