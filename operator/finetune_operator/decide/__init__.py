"""What happens with a job: pure functions of what was observed, the configuration and the time."""
