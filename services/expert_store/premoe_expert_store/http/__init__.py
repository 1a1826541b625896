"""Blobs as ranges of HTTP/1.1, by signed addresses: sent out of the cache's files by the kernel."""
