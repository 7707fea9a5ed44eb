"""What PyTorch really keeps for the way back: counted by hooks where tensors are saved.

Each storage counts once, however many views of it are saved: a view keeps all of its storage alive.
Parameters and inputs, which live anyway, are left out when they are named.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor


class SavedTensors:
    """A block in which saved tensors are counted; `nbytes` is what they hold together.

    >>> with SavedTensors(beside=model.parameters()) as saved:
    ...     loss = model(x).sum()
    >>> saved.nbytes          # before loss.backward() frees them
    """

    def __init__(self, beside: Iterable[Tensor] = ()) -> None:
        self._beside = {_storage(tensor) for tensor in beside}
        self._found: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _same)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    @property
    def nbytes(self) -> int:
        """Bytes of all storages that hold a saved tensor."""
        return sum(self._found.values())

    @property
    def count(self) -> int:
        """How many storages these are."""
        return len(self._found)

    def _pack(self, tensor: Tensor) -> Tensor:
        place = _storage(tensor)
        if place not in self._beside:
            self._found[place] = tensor.untyped_storage().nbytes()
        return tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
