"""run: residency. Where weights live while a model runs, and how they get there."""
