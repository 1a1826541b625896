"""Mixed load on a mesh whose expert store and Redis die now and then, and what may come of it."""
