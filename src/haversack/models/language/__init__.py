"""Language model families: one torch-free file each, with the hub's names for its tensors."""
