"""A published detector as the frozen teacher of a split network: `Maps` of PyTorch, and the module made of
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from haversack.models.vision._detector_maps import Shapes, pads_of
from haversack.models.vision._detector_record import PREFIX
from haversack.models.vision._slim_record import SplitNet
from haversack.models.vision._slim_teacher_torch import Frozen

F32 = NDArray[np.float32]


class TorchMaps:
    """`Maps` of tensors [n, c, h, w]."""

    def __init__(self, tensors: Mapping[str, Tensor], shapes: Shapes) -> None:
        self.tensors, self.shapes = tensors, shapes

    def conv(
        self, x: Tensor, name: str, stride: int = 1, *, pad: int | None = None, same: bool = False
    ) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        groups = x.shape[1] // weight.shape[1]
        before, after = pads_of(x.shape[2], weight.shape[2], stride, pad, same)
        if before == after:
            return functional.conv2d(x, weight, bias, stride, before, 1, groups)
        x = functional.pad(x, (before, after, before, after))
        return functional.conv2d(x, weight, bias, stride, 0, 1, groups)

    def relu(self, x: Tensor) -> Tensor:
        return functional.relu(x)

    def silu(self, x: Tensor) -> Tensor:
        return functional.silu(x)

    def pooled(self, x: Tensor, kernel: int, stride: int, pad: int = 0, *, same: bool = False) -> Tensor:
        before, after = pads_of(x.shape[2], kernel, stride, pad, same)
        x = functional.pad(x, (before, after, before, after), value=float("-inf"))
        return functional.max_pool2d(x, kernel, stride)

    def doubled(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")

    def add(self, *xs: Tensor) -> Tensor:
        total = xs[0]
        for x in xs[1:]:
            total = total + x
        return total

    def weighted(self, xs: Sequence[Tensor], name: str) -> Tensor:
        weights = self.tensors[name]
        return self.add(*(x * weight for x, weight in zip(xs, weights, strict=True)))

    def gated(self, x: Tensor, inner: str, outer: str) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * self.conv(self.silu(self.conv(mean, inner)), outer).sigmoid()


class DetectorTeacher(Frozen):
    """What `distil` asks of a teacher: its feature at the split, and its stages from there on. The stages
    of a detector are those of its backbone; what answers is not learned from, as the authors' training has
    it."""

    def __init__(self, net: SplitNet, tensors: Mapping[str, F32]) -> None:
        super().__init__()
        assert net.detector is not None
        self.net, self.detector = net, net.detector
        scale, shift = (torch.from_numpy(each)[:, None, None] for each in self.detector.scale_and_shift())
        self._scale, self._shift = scale, shift
        for name in self.detector.shapes:
            array = np.array(tensors[PREFIX + name], np.float32)
            self.register_buffer(_held(name), torch.from_numpy(array))

    @property
    def maps(self) -> TorchMaps:
        """Its layers."""
        held = {name: self.get_buffer(_held(name)) for name in self.detector.shapes}
        return TorchMaps(held, self.detector.shapes)

    def head_of(self, x: Tensor) -> Tensor:
        """The feature at the split of pictures normed as the split networks norm them."""
        made: Tensor = self.detector.module.front(self.maps, x * self._scale + self._shift)
        return made

    def stages(self, split: Tensor) -> list[Tensor]:
        """The feature at the split and those of the backbone behind it."""
        return [split, *self.detector.module.stages(self.maps, split)]

    def answers(self, split: Tensor) -> dict[str, Tensor]:
        """What the detector says, before boxes are made of it."""
        made: dict[str, Tensor] = self.detector.module.answers(self.maps, split, self.stages(split)[1:])
        return made

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names of a pack."""
        return {PREFIX + name: self.get_buffer(_held(name)) for name in self.detector.shapes}


def _held(name: str) -> str:
    return name.replace(".", "/")
