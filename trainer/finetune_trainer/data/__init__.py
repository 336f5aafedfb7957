"""Turns the rows of a file into batches of tokens."""
