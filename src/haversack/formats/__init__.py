"""One reader or writer per file format."""
