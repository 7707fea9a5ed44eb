"""One file per published system: method and baseline in one run."""
