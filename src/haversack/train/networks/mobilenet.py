"""MobileNetV2, MobileNetV3 and ProxylessNAS as networks that learn from labelled pictures.

A folder as timm publishes it (config.json with `architecture`, model.safetensors), a folder or file of
safetensors with the names of torchvision or of ProxylessNAS. Learning and judging need PyTorch (extra
workshop); what is told of a network without it is in models/vision.
"""

from __future__ import annotations

from pathlib import Path

from haversack.models.vision import _folder
from haversack.train._network import Network
from haversack.train._training import torch_part

SYSTEM = 20


def recognises(path: Path) -> bool:
    """See train/networks/__init__.py."""
    return _folder.recognises(path)


def open_network(path: Path, seed: int) -> Network:
    """The network at `path`, as its checkpoint has it. Raises UserError and DamagedFileError as
    `models/vision/_folder.py` says, MissingExtraError without PyTorch."""
    record, tensors = _folder.read_checkpoint(path)
    part = torch_part("haversack.train.networks.mobilenet_torch", "learning from pictures")
    network: Network = part.PictureNetwork.of(path.resolve().name, record, tensors)
    return network
