"""Work divided between device and cloud."""
