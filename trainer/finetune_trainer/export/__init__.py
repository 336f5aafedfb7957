"""Turns checkpoints into other forms."""
