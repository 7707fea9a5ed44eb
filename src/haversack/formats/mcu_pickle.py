"""Int8 networks of MCUNet's tiny training: a zip file with one pickle of plain values, read without running
anything.

Source: the checkpoints of mit-han-lab/tiny-training (algorithm/assets/mcu_models/*.pkl). A network is
`first_conv`, a list of `blocks` (pointwise1, depthwise, pointwise2, each may be absent; residual), a
`feature_mix` that may be absent and a `classifier`. Every layer has its integers and their scales: weight i8
[outputs, inputs, k, k], bias i32, w_scales f32 for each output, x_scale, x_zero, y_scale, y_zero. Squeeze and
excite is refused: no published network has it, and it has no way back.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats._plain_pickle import Refused, plain_values

LARGEST = 64 * 2**20
MEMBER = "data.pkl"
BLOCKS_MOST = 200
SIZES = range(1, 4097)  # of pictures, channels
KERNELS = range(1, 16)

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Activations:
    """Real values (q - zero) * scale of int8 codes q."""

    scale: float
    zero: int


@dataclass(frozen=True)
class McuLayer:
    """One convolution. `weight` i8 [outputs, inputs or 1, k, k]; the value of one is weight * scales[output],
    that of a bias bias * x.scale * scales[output]."""

    weight: I8
    bias: I32
    scales: F32
    x: Activations
    y: Activations
    stride: int
    depthwise: bool

    @property
    def kernel(self) -> int:
        """Height and width of the kernel."""
        return int(self.weight.shape[2])


@dataclass(frozen=True)
class McuBlock:
    """Layers one after the other; with `residual` their result is added to the block's input, and the sum has
    these codes. `names` are the file's own for the layers."""

    names: tuple[str, ...]
    layers: tuple[McuLayer, ...]
    residual: Activations | None


@dataclass(frozen=True)
class McuNetwork:
    """A whole network for pictures of `size` x `size` x 3."""

    size: int
    first: McuLayer
    blocks: tuple[McuBlock, ...]
    classifier: McuLayer


def is_mcu_file(path: Path) -> bool:
    """Whether `path` looks like such a file: a zip with one pickle, by its name and its directory."""
    if path.suffix != ".pkl" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).name == MEMBER for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError):
        return False


def read_mcu(path: Path) -> McuNetwork:
    """The network in the file. Raises UserError when it cannot be read, DamagedFileError for anything that is
    not such a network."""
    try:
        return network_of(plain_values(_pickle_bytes(path)))
    except Refused as error:
        raise DamagedFileError(path, f"it is no int8 network ({error})", field="model") from error


def _pickle_bytes(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            found = [info for info in archive.infolist() if Path(info.filename).name == MEMBER]
            if len(found) != 1:
                raise Refused(f"it has {len(found)} files named {MEMBER}")
            if found[0].file_size > LARGEST:
                raise Refused(f"{MEMBER} is larger than {LARGEST >> 20} MiB")
            with archive.open(found[0]) as stream:
                data = stream.read(LARGEST + 1)
            if len(data) != found[0].file_size:
                raise Refused(f"{MEMBER} is not as long as the zip file says")
            return data
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}.", field="model", given=str(path)
        ) from error
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise Refused(f"it is no whole zip file: {error}") from error


def network_of(content: Any) -> McuNetwork:
    """The network that plain values describe. Raises Refused with the finding."""
    root = _Part(content, "the network")
    first = root.layer("first_conv")
    size = root.part("first_conv").whole("in_shape", SIZES)
    blocks = tuple(_block(each) for each in root.parts("blocks"))
    if root.optional("feature_mix") is not None:
        blocks += (McuBlock(("feature_mix",), (root.layer("feature_mix"),), None),)
    network = McuNetwork(size, first, blocks, root.layer("classifier"))
    _check_chain(network)
    return network


def _block(part: _Part) -> McuBlock:
    if part.optional("se") is not None:
        raise Refused(f"{part.where} has squeeze and excite, which is not supported")
    names = tuple(
        name for name in ("pointwise1", "depthwise", "pointwise2") if part.optional(name) is not None
    )
    if not names:
        raise Refused(f"{part.where} has no layer")
    layers = tuple(part.layer(name) for name in names)
    residual = None
    if part.optional("residual") is not None:
        params = part.part("residual").part("params")
        residual = params.activations("y")
        if params.activations("x") != layers[0].x:
            raise Refused(f"{part.where} adds another input than its own")
    return McuBlock(names, layers, residual)


def _check_chain(network: McuNetwork) -> None:
    """Channels and codes of each layer's input are those of what comes before it."""
    channels, codes = 3, network.first.x
    for block in (McuBlock(("first_conv",), (network.first,), None), *network.blocks):
        begin = channels
        strides = 1
        for name, layer in zip(block.names, block.layers, strict=True):
            outputs, inputs = layer.weight.shape[:2]
            if layer.depthwise and (inputs != 1 or outputs != channels):
                raise Refused(
                    f"{name} is depthwise over {channels} channels with weights {layer.weight.shape}"
                )
            if not layer.depthwise and inputs != channels:
                raise Refused(f"{name} takes {inputs} channels and gets {channels}")
            if layer.x != codes:
                raise Refused(f"{name} reads other codes than the layer before it writes")
            channels, codes, strides = outputs, layer.y, strides * layer.stride
        if block.residual is not None:
            if channels != begin or strides != 1:
                raise Refused("a residual adds tensors of two shapes")
            codes = block.residual
    last = network.classifier
    if last.weight.shape[1:] != (channels, 1, 1) or last.depthwise or last.x != codes:
        raise Refused("the classifier does not fit what comes before it")


@dataclass(frozen=True)
class _Part:
    """A dictionary of the file, and where it stands."""

    content: Any
    where: str

    def optional(self, key: str) -> Any:
        if not isinstance(self.content, dict):
            raise Refused(f"{self.where} is no dictionary")
        return self.content.get(key)

    def part(self, key: str) -> _Part:
        found = self.optional(key)
        if not isinstance(found, dict):
            raise Refused(f"{self.where} has no {key}")
        return _Part(found, key if self.where == "the network" else f"{key} of {self.where}")

    def parts(self, key: str) -> list[_Part]:
        found = self.optional(key)
        if not isinstance(found, list) or not 0 < len(found) <= BLOCKS_MOST:
            raise Refused(f"{self.where} has no list of 1 to {BLOCKS_MOST} {key}")
        return [_Part(each, f"block {number}") for number, each in enumerate(found)]

    def whole(self, key: str, allowed: range) -> int:
        found = self.optional(key)
        if type(found) is not int or found not in allowed:
            raise Refused(f"{key} of {self.where} is {str(found)[:40]}, not {allowed[0]} to {allowed[-1]}")
        return found

    def scale(self, key: str) -> float:
        found = self.optional(key)
        if not isinstance(found, float) or not (math.isfinite(found) and found > 0):
            raise Refused(f"{key} of {self.where} is {str(found)[:40]}, not a number above 0")
        return found

    def activations(self, which: str) -> Activations:
        return Activations(self.scale(f"{which}_scale"), self.whole(f"{which}_zero", range(-128, 128)))

    def array(self, key: str, dtype: Any, dimensions: int) -> Any:
        found = self.optional(key)
        if not isinstance(found, np.ndarray) or found.dtype != dtype or found.ndim != dimensions:
            kind = np.dtype(dtype).name
            raise Refused(f"{key} of {self.where} is no array of {kind} with {dimensions} dimensions")
        if not found.size or max(found.shape) > SIZES[-1]:
            raise Refused(f"{key} of {self.where} has the shape {found.shape}")
        return found

    def layer(self, key: str) -> McuLayer:
        part = self.part(key)
        params = part.part("params")
        weight = params.array("weight", np.int8, 4)
        bias, scales = params.array("bias", np.int32, 1), params.array("w_scales", np.float32, 1)
        outputs, _, height, width = weight.shape
        if height != width or height not in KERNELS or len(bias) != outputs or len(scales) != outputs:
            raise Refused(f"weights, biases and scales of {part.where} do not fit together")
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            raise Refused(f"w_scales of {part.where} are not all above 0")
        stride = part.whole("stride", range(1, 5))
        depthwise = bool(part.optional("depthwise"))
        return McuLayer(
            weight, bias, scales, params.activations("x"), params.activations("y"), stride, depthwise
        )
