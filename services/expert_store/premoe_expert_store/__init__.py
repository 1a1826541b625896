"""ExpertStoreService: expert blobs out of object storage, through an optional Redis cache."""
