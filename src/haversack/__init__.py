"""Haversack takes AI models to devices: it makes a model fit a device's budget, runs it there and measures it."""

__version__ = "0.1.0"
