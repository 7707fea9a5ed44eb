"""One wrapper per peer or oracle; each makes its own environment and nothing else imports it."""
