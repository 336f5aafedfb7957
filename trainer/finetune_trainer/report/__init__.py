"""What a run tells: progress, metrics, trackers."""
