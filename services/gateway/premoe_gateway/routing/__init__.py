"""Which worker answers: what is known of each, whose experts fit, and where a conversation was."""
