"""niti: the network learns in whole numbers, int8 with one power of two a tensor.

Paper: Wang et al., "NITI: Training Integer Neural Networks Using Integer-Only Arithmetic" (arXiv 2009.13108,
2020).
What is here: the declaration that a training stays within integers. The arithmetic is train/_niti.py's, the
network train/networks/integers.py, the step that of a gradient method for integers (elasticzo-int8), which
writes whole mantissas; a float that is handed over to be stored is refused.
Cost: none beside the network's. Limits: networks of integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from haversack.core.errors import UserError
from haversack.core.method import Method
from haversack.train._network import F32, Array, Network, Slice
from haversack.train._niti import require_integers
from haversack.train._slots import Learned, Plain


class WholeNumbers(Plain):
    """See train/_slots.py, Numbers."""

    def scaled(self, gradients: Mapping[str, F32]) -> dict[str, F32]:
        """See Numbers. Raises UserError for gradients that are not integers."""
        for name, gradient in gradients.items():
            require_integers(gradient, name)
        return dict(gradients)

    def store(self, name: str, array: Array, values: F32, part: Slice | None) -> None:
        """See Numbers. Raises UserError for values that are not integers."""
        require_integers(values, name)
        array[...] = values


@dataclass(frozen=True)
class Niti(Method):
    name = "niti"
    stage = "train"
    slot = "precision"
    paper = "Wang et al., NITI: Training Integer Neural Networks Using Integer-Only Arithmetic (2020)"
    summary = "The network learns in whole numbers, int8 with one power of two a tensor."
    system = 31

    exactness: ClassVar[int] = 1

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Precision."""
        return ("niti",) if hasattr(network, "integer_gradients") else ()

    def begin(self, network: Network, learned: Learned) -> WholeNumbers:
        """See Precision."""
        tensors = network.tensors()
        floats = [name for name in learned.wanted if tensors[name].dtype != np.int8]
        if floats or not hasattr(network, "integer_gradients"):
            what = floats[0] if floats else network.name
            raise UserError(
                f"{what} is not of a network of integers; use precision f32.",
                field="precision",
                given="niti",
                nearest="f32",
            )
        return WholeNumbers()
