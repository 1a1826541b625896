"""Blob caches behind the BlobCache port."""
