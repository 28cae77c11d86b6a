"""From windows to batches: the only stage that knows torch."""
