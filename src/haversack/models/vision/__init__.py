"""Networks of inverted residual blocks that see pictures: NAME.py is a family's record, without PyTorch.

`_record.py` says what such a network is made of, `_names.py` what its tensors are called by those who publish
them, `_folder.py` reads and writes checkpoints, `_counts.py` counts parameters, products and what the way
back keeps; `_inverted_residual_torch.py` is the module.
"""
