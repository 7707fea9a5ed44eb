"""What of a network or a model learns: one method a file, its PyTorch part in NAME_torch.py beside it."""
