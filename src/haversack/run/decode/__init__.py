"""run: decode. How the next tokens are found."""
