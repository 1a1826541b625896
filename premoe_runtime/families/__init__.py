"""Model families: tensor names on disk and router arithmetic, one file a family."""
