"""Reports what a run does: progress, metrics, trackers."""
