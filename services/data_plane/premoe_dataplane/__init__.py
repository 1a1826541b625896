"""How expert blobs travel: plans of where bytes lie, and the ways to read them. One door for workers and stores."""
