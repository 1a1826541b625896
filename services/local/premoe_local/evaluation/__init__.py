"""An evaluation for people: its recipe, and its figures as Markdown and as pictures."""
