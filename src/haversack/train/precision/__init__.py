"""What a network computes in while it learns: one method a file."""
