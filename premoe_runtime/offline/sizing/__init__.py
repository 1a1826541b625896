"""What a model takes in memory, worked out from a pack or from a config alone; nothing is loaded."""
