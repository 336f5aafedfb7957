"""Checkpoints: the weights, and the state to resume from."""
