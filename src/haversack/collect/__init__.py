"""From sensors to datasets."""
