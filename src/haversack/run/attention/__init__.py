"""run: attention. Which cached tokens a query sees, and how they are weighed."""
