"""Checks and computes all that is known before a device is used."""
