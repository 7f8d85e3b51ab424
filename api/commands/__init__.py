"""What `sepgate` does: serve, protect, demo, doctor."""
