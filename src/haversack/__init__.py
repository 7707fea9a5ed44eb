"""Haversack takes AI models to devices: makes a model fit a device's budget, runs it there, measures it."""

__version__ = "0.1.0"
