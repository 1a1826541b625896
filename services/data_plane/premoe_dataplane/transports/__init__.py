"""Ways to read pieces of blobs, one file a scheme, behind the port ``base.Transport``."""
