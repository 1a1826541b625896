"""The HTTP half: the application with its routes, the server that runs it, and its spans."""
