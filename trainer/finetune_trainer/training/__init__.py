"""The training loop and what a step of it is."""
