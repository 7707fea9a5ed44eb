"""f32: the network learns in its own 32-bit floats.

Paper: none; the baseline of the slot.
What is here: gradients are taken as they come and values are stored as they are. A tensor that a network
keeps in integers is rounded to nearest when it is written, which loses every step below half a unit; other
methods of this slot mend that.
Cost: none. Limits: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from haversack.core.method import Method
from haversack.train._network import Network
from haversack.train._slots import Learned, Plain


@dataclass(frozen=True)
class F32(Method):
    name = "f32"
    stage = "train"
    slot = "precision"
    paper = "-"
    summary = "The network learns in its own 32-bit floats."

    exactness: ClassVar[int] = 0

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Precision."""
        kinds = {array.dtype for array in network.tensors().values()}
        return ("f32",) if np.dtype(np.float32) in kinds and np.dtype(np.int8) not in kinds else ()

    def begin(self, network: Network, learned: Learned) -> Plain:
        """See Precision."""
        return Plain()
