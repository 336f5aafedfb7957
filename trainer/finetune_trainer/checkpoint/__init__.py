"""What is saved of a run besides what is ready for use."""
