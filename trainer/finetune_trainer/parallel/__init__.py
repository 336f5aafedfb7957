"""How devices share the work: a file for each kind of parallelism."""
