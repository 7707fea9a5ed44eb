"""Training methods that fit a device."""
