"""run: context. What of a prompt reaches the cache."""
