"""Search over the number of active experts: several answers with different ones, and a verifier that chooses."""
