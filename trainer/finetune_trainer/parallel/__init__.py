"""Kinds of parallelism, by which devices share the work: a file for each."""
