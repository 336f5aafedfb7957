"""Storage: where inputs are read from and runs are written to."""
