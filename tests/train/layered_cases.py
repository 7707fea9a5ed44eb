"""Small labelled batches for the layered networks."""

from __future__ import annotations

import numpy as np

from haversack.train._network import Batch, Network
from haversack.train._slots import Learned

CLASSES = tuple("0123456789")


def batch(network: str, rows: int = 6, seed: int = 0) -> Batch:
    """Random rows: u8 pictures of 28 x 28, or clouds of 256 points."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, rows)
    if network == "lenet5":
        return Batch(rng.integers(0, 256, (rows, 28, 28, 1), np.uint8), labels)
    return Batch(rng.standard_normal((rows, 256, 3)).astype(np.float32), labels)


def everything(network: Network) -> Learned:
    """All that can learn."""
    return Learned({name: None for name, role in network.roles().items() if role in ("weight", "bias")})


def bits(network: Network) -> bytes:
    return b"".join(array.tobytes() for array in network.tensors().values())
