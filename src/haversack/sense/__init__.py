"""Signals and images understood without a big model."""
