"""Which experts lie in which slot, and how that changes: arenas, tables, plans and the three-step swap."""
