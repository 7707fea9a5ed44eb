"""Architectures by modality, and what training and compression share about networks."""
