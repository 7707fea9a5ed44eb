"""Engines that run a pack, without PyTorch."""
