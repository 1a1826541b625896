"""The console: a web page for people, and the two small documents behind its pictures."""
