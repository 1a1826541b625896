"""The in-memory side of families: which stock classes run them, and where router and experts sit."""
