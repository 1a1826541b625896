"""Helpers of the tests; no test lies here."""
