"""How workers are started and followed: in this process, or by Ray Train."""
