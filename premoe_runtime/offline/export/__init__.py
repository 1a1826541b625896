"""A pattern cut into a static checkpoint: what stays, what every file holds, and the writing of it."""
