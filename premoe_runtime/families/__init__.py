"""Model families: what no stock class tells of them, one value and one file a family."""
