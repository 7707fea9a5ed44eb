"""The PyTorch part of MobileTL: activations that keep one bit an element, and the exchange of layers.

`BinaryMaskReLU6` and `BinaryMaskHardSwish` pass forward as ever and back by a packed mask.
`FrozenAffineShift`, the shift-only norm, is a state of every norm of models/vision: it is taken where a norm
has fixed statistics and its scale does not learn (`models/vision/_lean_torch.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from haversack.core.errors import UserError
from haversack.models.vision._counts import Way
from haversack.models.vision._inverted_residual_torch import ACTIVATIONS, PictureModule
from haversack.models.vision._lean_torch import FrozenAffineShift, Norm

if TYPE_CHECKING:
    from haversack.train.parameters.mobiletl import MobileTL

__all__ = ["BinaryMaskHardSwish", "BinaryMaskReLU6", "FrozenAffineShift", "exchange", "mobiletl"]


def packed(mask: Tensor) -> Tensor:
    """u8 [ceil(elements / 8)] of a mask, eight elements a byte, the first one highest."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.packbits(mask.numpy()))
    flat = functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (flat << torch.arange(7, -1, -1, device=mask.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpacked(bits: Tensor, like: Tensor) -> Tensor:
    """The mask that `packed` was given, in the shape of `like`."""
    if bits.device.type == "cpu":
        flat = torch.from_numpy(np.unpackbits(bits.numpy(), count=like.numel()))
    else:
        shifts = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
        flat = ((bits[:, None] >> shifts) & 1).flatten()[: like.numel()]
    return flat.view(torch.bool).view_as(like)


class BinaryMaskReLU6(torch.autograd.Function):
    """ReLU6; its slope [0 < x < 6] is kept in one bit an element, which is exact."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(packed((x > 0) & (x < 6)))
        return x.clamp(0, 6)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (bits,) = context.saved_tensors
        return gradient * unpacked(bits, gradient)


class BinaryMaskHardSwish(torch.autograd.Function):
    """Hard-Swish; [x > 0] stands for its slope on the way back."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(packed(x > 0))
        return functional.hardswish(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (bits,) = context.saved_tensors
        return gradient * unpacked(bits, gradient)


class MaskedReLU6(nn.Module):
    """`BinaryMaskReLU6` in the place of an activation."""

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = BinaryMaskReLU6.apply(x)
        return made


class MaskedHardSwish(nn.Module):
    """`BinaryMaskHardSwish` in the place of an activation."""

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = BinaryMaskHardSwish.apply(x)
        return made


MASKED = {"relu6": MaskedReLU6, "hard-swish": MaskedHardSwish}


def mobiletl(module: Any, method: MobileTL, norms: Mapping[type, str] | None = None) -> Way:
    """Exchange the layers of `module` in place, as `method` says, and return how it learns.

    `norms` says what becomes of norms that are no batch norms, by their type: `full` or `frozen`. Raises
    UserError for a module without inverted residual blocks, for more blocks than it has, and for another
    norm that `norms` does not name.
    """
    require_blocks(module)
    way = method.way(module.record)
    top = [name for name in module.units() if _trained(name, module, method.blocks)]
    learned = set(way.learned)
    measuring = set(way.batch_norms)
    for name in top:
        norm = module.units()[name].norm
        if isinstance(norm, Norm):
            continue
        how = (norms or {}).get(type(norm))
        if how not in ("full", "frozen"):
            raise UserError(
                f"{name} has a {type(norm).__name__} and no batch norm, and nothing says what of it learns; "
                "say it by norms={...: 'full'} or 'frozen'.",
                field="norms",
                given=type(norm).__name__,
                nearest="full",
            )
        parts = {f"{name}.norm.{part}" for part, _ in norm.named_parameters()}
        learned = learned | parts if how == "full" else learned - parts
        measuring.discard(name)
    way = Way(frozenset(learned), frozenset(measuring), way.masked)
    exchange(module, way)
    return way


def require_blocks(module: Any) -> None:
    """Raises UserError for what is no network of inverted residual blocks."""
    if not isinstance(module, PictureModule) or not len(module.blocks):
        kind = type(module).__name__ if isinstance(module, nn.Module) else "this network"
        raise UserError(
            f"{kind} has no inverted residual blocks that are known here; give a MobileNetV2, MobileNetV3 or "
            "ProxylessNAS checkpoint.",
            field="model",
            given=kind,
        )


def exchange(module: PictureModule, way: Way) -> None:
    """Put the norms and activations of `way` in place, and PyTorch's own everywhere else; say which
    parameters have a gradient. What stands beside blocks is taken away."""
    units = {unit.name: unit.activation for unit in _record_units(module)}
    for block in module.inverted_residuals():
        block.beside = None
    for name, unit in module.units().items():
        if isinstance(unit.norm, Norm):
            unit.norm.measures = name in way.batch_norms
        kind = units[name]
        if kind is not None:
            unit.act = MASKED[kind]() if name in way.masked else ACTIVATIONS[kind]()
    hidden = module.record.hidden
    if hidden is not None and hidden.activation is not None:
        kind = hidden.activation
        module.hidden_act = MASKED[kind]() if hidden.name in way.masked else ACTIVATIONS[kind]()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in way.learned)


def _record_units(module: PictureModule) -> list[Any]:
    record = module.record
    inside = [layer for block in record.blocks for layer in block.layers() if hasattr(layer, "activation")]
    return [record.stem, *inside, record.final]


def _trained(name: str, module: PictureModule, blocks: int) -> bool:
    if name == "final":
        return True
    first = len(module.blocks) - blocks
    return name.startswith("blocks.") and int(name.split(".")[1]) >= first
