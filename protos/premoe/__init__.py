"""Generated stubs; the .proto files are the source."""
