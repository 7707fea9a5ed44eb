"""run: prefill. How a prompt is read."""
