"""Finds models and adapters, and loads them for training."""
