"""What the operator reports of itself: health, logs and metrics."""
