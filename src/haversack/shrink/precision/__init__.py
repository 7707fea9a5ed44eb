"""How many bits a weight gets and which: one method a file."""
