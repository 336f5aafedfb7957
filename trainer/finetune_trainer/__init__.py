"""The trainer: from a checked spec and rows of chat to checkpoints, on Ray Train."""
