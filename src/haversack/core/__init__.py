"""Budget, device, pack, method, measurement: the nouns of the house. Imports nothing of ours."""
