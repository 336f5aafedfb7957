"""The kinds of parallelism: how devices share the work. A file for each."""
