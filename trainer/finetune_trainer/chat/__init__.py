"""Answers of a checkpoint, and of the model that it was trained from."""
