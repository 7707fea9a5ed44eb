"""Assistants built from the other rooms."""
