"""How a step of training is found and taken: one method a file; PyTorch parts in NAME_torch.py beside it."""
