"""The planner: enumerate, prune, predict, measure, front."""
