"""Matrices that are stored as several parts, one form a file; run/_forms.py says what a form is."""
