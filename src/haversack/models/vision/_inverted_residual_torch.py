"""A network of inverted residual blocks as a PyTorch module, built from its record.

What is here: `PictureModule`, whose tensors have the record's names, so that `state_dict()` and the arrays of
`_folder.py` are the same table. Activations are PyTorch's own and may be exchanged (`Unit.act`). A pass may
begin above some of the blocks, with their maps made beforehand.
Limits: f32; no dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from haversack.core.errors import UserError
from haversack.models.vision import _record
from haversack.models.vision._lean_torch import Convolution, Norm
from haversack.models.vision._record import PictureNet

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hard-swish": nn.Hardswish}


class Unit(nn.Module):
    """See _record.Unit."""

    def __init__(self, unit: _record.Unit, momentum: float) -> None:
        super().__init__()
        self.conv = Convolution(
            *(unit.inputs, unit.outputs, unit.kernel, unit.stride),
            padding=(unit.kernel - 1) // 2,
            groups=unit.groups,
            bias=False,
        )
        self.norm = Norm(unit.outputs, unit.eps, momentum)
        self.act = nn.Identity() if unit.activation is None else ACTIVATIONS[unit.activation]()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.act(self.norm(self.conv(x)))
        return made


class Squeeze(nn.Module):
    """See _record.Squeeze."""

    def __init__(self, squeeze: _record.Squeeze) -> None:
        super().__init__()
        self.reduce = Convolution(squeeze.channels, squeeze.inner, 1)
        self.expand = Convolution(squeeze.inner, squeeze.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.reduce(x.mean((2, 3), keepdim=True)).relu()
        return x * functional.hardsigmoid(self.expand(inner))


class Block(nn.Module):
    """See _record.Block. `beside`, where a method puts one, is added to what leaves."""

    def __init__(self, block: _record.Block, momentum: float) -> None:
        super().__init__()
        self.block = block
        self.expand = None if block.expand is None else Unit(block.expand, momentum)
        self.depthwise = Unit(block.depthwise, momentum)
        self.squeeze = None if block.squeeze is None else Squeeze(block.squeeze)
        self.project = Unit(block.project, momentum)
        self.beside: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        made = x
        for layer in (self.expand, self.depthwise, self.squeeze, self.project):
            if layer is not None:
                made = layer(made)
        if self.beside is not None:
            made = made + self.beside(x)
        return made + x if self.block.residual else made


class PictureModule(nn.Module):
    """See _record.PictureNet; fresh weights by `initialize`."""

    def __init__(self, record: PictureNet) -> None:
        super().__init__()
        self.record = record
        self.stem = Unit(record.stem, record.momentum)
        self.blocks = nn.ModuleList(Block(block, record.momentum) for block in record.blocks)
        self.final = Unit(record.final, record.momentum)
        hidden = record.hidden
        self.hidden = None if hidden is None else nn.Linear(hidden.inputs, hidden.outputs)
        self.hidden_act = (
            nn.Identity() if hidden is None or hidden.activation is None else ACTIVATIONS[hidden.activation]()
        )
        self.classifier = nn.Linear(record.classifier.inputs, record.classifier.outputs)

    def initialize(self, seed: int) -> None:
        """Draw the weights: convolutions with deviation sqrt(2 / (outputs k^2 / groups)), linear layers
        evenly within 1 / sqrt(inputs), norms plain."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, Convolution):
                    fan = module.out_channels * module.kernel_size[0] ** 2 // module.groups
                    module.weight.normal_(0, (2 / fan) ** 0.5, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
                elif isinstance(module, nn.Linear):
                    bound = module.in_features**-0.5
                    module.weight.uniform_(-bound, bound, generator=generator)
                    module.bias.zero_()
                elif isinstance(module, Norm):
                    module.reset_parameters()

    def inverted_residuals(self) -> list[Block]:
        """The blocks, lowest first."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def units(self) -> dict[str, Unit]:
        """Every convolution with its norm, by the record's name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Unit)}

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and running statistics by name, in the order of the pass; not detached."""
        held: dict[str, Tensor] = {}
        for name, module in self.named_modules():
            parts = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            held |= {f"{name}.{part}": tensor for part, tensor in parts if part != "num_batches_tracked"}
        return held

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The same as arrays that share the module's memory."""
        return {name: tensor.detach().numpy() for name, tensor in self.tensors().items()}

    def load(self, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Copy arrays by name into the module; each tensor of the record must be there."""
        own = self.arrays()
        for name in self.record.tensors():
            own[name][...] = tensors[name]

    def normed(self, pictures: Any) -> Tensor:
        """f32 [n, 3, h, w] of pictures u8 [n, h, w, 3], as the first convolution wants them."""
        mean, deviation = (
            torch.tensor(values)[:, None, None] for values in (self.record.mean, self.record.std)
        )
        x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
        return x.float().div_(255).sub_(mean).div_(deviation).contiguous()

    def maps(self, x: Tensor, start: int, end: int) -> Tensor:
        """What leaves the blocks below `end` for `x`, which comes into block `start` (0: pictures)."""
        if not x.is_floating_point():
            raise UserError(
                f"pictures come as {x.dtype}, and the network takes floats; divide by 255, subtract the mean "
                "and divide by the deviation.",
                field="data",
                given=str(x.dtype),
                nearest="float32",
            )
        if start == 0:
            x = self.stem(x)
        for block in self.blocks[start:end]:
            x = block(x)
        return x

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Logits [n, classes] of normed pictures, or of the maps that come into block `start`."""
        x = self.final(self.maps(x, start, len(self.blocks))).mean((2, 3))
        if self.hidden is not None:
            x = self.hidden_act(self.hidden(x))
        made: Tensor = self.classifier(x)
        return made
