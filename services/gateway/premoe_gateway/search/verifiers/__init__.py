"""What says how good an answer is: one file a kind, behind one protocol."""
