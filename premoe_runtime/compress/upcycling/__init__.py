"""A dense checkpoint turned into one with experts: its sibling family, the plan of every file, the writing of it."""
