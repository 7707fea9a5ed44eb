"""Hardware we do not own."""
