"""The scores that rank experts, a file a group: each says what it sums up, what it makes of that, and whose it is."""
