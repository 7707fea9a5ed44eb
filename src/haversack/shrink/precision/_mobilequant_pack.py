"""MobileQuant's packs: what was learned as the pipeline writes it, and read back as a model on its grids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, TensorSource
from haversack.kernels import Matrix, unpack, zero_bias
from haversack.kernels._matrix import unpack_integers
from haversack.models._architecture import Architecture
from haversack.models._fake_quant import Grid, affine_grid
from haversack.models.language import read_architecture
from haversack.run._weights import tensor
from haversack.shrink._block import BlockView
from haversack.shrink._precision import InputStatistics, Quantized, StoredKind
from haversack.shrink._rounding import F32
from haversack.shrink._source import read_tensor
from haversack.shrink.precision._mobilequant_model import OnGrid, QuantizedModel, modules
from haversack.shrink.precision.mobilequant import FILES, GROUP, MobileQuant, Where

RANGES, CONFIG = FILES


@dataclass(frozen=True)
class Static:
    """A matrix and the grid of its inputs; see run/forms/static_input.py."""

    inner: Quantized
    scale: float
    zero: int

    @property
    def kind(self) -> StoredKind:
        return self.inner.kind

    @property
    def form(self) -> dict[str, Any]:
        return {"form": "static-input", "scale": self.scale, "zero": self.zero}

    def parts(self) -> dict[str, Any]:
        """See Formed."""
        return {"codes": self.inner, "taken": zero_bias(self.inner.packed(), self.scale, self.zero)}


class Learned:
    """A model on its grids as the precision method of its own blocks."""

    name = MobileQuant.name
    needs: frozenset[str] = frozenset()

    def __init__(self, method: MobileQuant, model: QuantizedModel) -> None:
        self.method, self.model = method, model
        self._blocks = {name: block.index for block in model.architecture.blocks for name in block.tensors()}

    def stored(self, rows: int, columns: int) -> StoredKind:
        """See Precision."""
        return self.method.stored(rows, columns)

    def noise(self) -> float:
        """See Precision."""
        return self.method.noise()

    def transform(self, block: BlockView) -> None:
        """Put the learned norms and biases where those of the checkpoint were."""
        for name, values in block.tensors.items():
            if name in self.model.tensors:
                values[...] = self.model.tensors[name]

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Static]:
        """The learned codes of the matrices named."""
        found = {}
        for name in weights:
            scale, zero = self.model.static_input(name, self._blocks[name])
            found[name] = Static(stored(self.model.matrices[name], self.model.bits, name), scale, zero)
        return found

    def files(self) -> dict[str, bytes]:
        """act_ranges.json and qconfig.json."""
        ranges, config = self.model.ranges(), self.model.config()
        return {RANGES: json.dumps(ranges, indent=1).encode(), CONFIG: json.dumps(config, indent=1).encode()}


def learned(method: MobileQuant, source: TensorSource, architecture: Architecture, texts: Any) -> Learned:
    """`source` learned as `method` says. Raises UserError where PyTorch is missing, and for an encoder."""
    if not isinstance(architecture, Architecture):
        raise UserError(
            "mobilequant takes decoders; this model is an encoder.",
            field="precision",
            given="mobilequant",
            nearest="smoothquant",
        )
    try:
        from haversack.shrink.precision.mobilequant_torch import Recipe, quantize
    except ImportError as error:
        raise UserError(
            "mobilequant learns with PyTorch, which is not installed; run: pip install 'haversack[workshop]'",
            field="precision",
            given="mobilequant",
            nearest="smoothquant",
        ) from error
    names = architecture.tensors()
    tensors = {name: np.require(read_tensor(source, name), np.float32, ["C", "W"]) for name in names}
    recipe = Recipe(bits=method.bits, mode=method.mode, epochs=method.epochs, full=method.full)
    return Learned(method, quantize(architecture, tensors, texts, recipe, copied=False))


def stored(matrix: OnGrid, bits: int, name: str) -> Quantized:
    """A matrix in the kernels' kinds. Raises UserError for an asymmetric one, which they lack."""
    if not matrix.symmetric:
        raise UserError(
            f"{name} has asymmetric weights, which no kernel runs; quantize with symmetric=True for a pack.",
            field="symmetric",
            given=False,
            nearest=True,
        )
    kind = StoredKind("int8") if bits == 8 else StoredKind("int4", GROUP)
    groups = 1 if kind.group is None else -(-matrix.codes.shape[1] // kind.group)
    scales = np.broadcast_to(matrix.grid.scale, (len(matrix.codes), groups))
    return Quantized(kind, matrix.codes.astype(np.int8), np.ascontiguousarray(scales, np.float32))


def read_model(pack: Pack) -> QuantizedModel:
    """The model on its grids that `pack` holds, for `run_integer` and `simulate`.

    Raises UserError for a pack of another method, DamagedFileError where its files do not fit its model.
    """
    architecture = read_architecture(pack.record.architecture)
    grids = read_grids(pack, architecture)
    tensors: dict[str, F32] = {}
    matrices: dict[str, OnGrid] = {}
    bits = 8
    for name in architecture.tensors():
        if name not in pack.forms:
            entry = pack.tensors[name]
            found = tensor(entry, pack.bytes(name))
            tensors[name] = unpack(found) if isinstance(found, Matrix) else found
            continue
        entry = pack.tensors[f"{name}.codes"]
        codes, scales = unpack_integers(tensor(entry, pack.bytes(entry.name)))
        bits = 8 if entry.kind == "int8" else 4
        scale = np.asarray(scales, np.float32).reshape(len(codes), -1)[:, :1]
        top = 127 if bits == 8 else 7
        matrices[name] = OnGrid(codes.astype(np.int16), Grid(scale, np.zeros_like(scale), -top - 1, top))
    return QuantizedModel(architecture, bits, tensors, matrices, grids)


def read_grids(pack: Pack, architecture: Architecture) -> dict[Where, Grid]:
    """The grids of the activations of `pack`, from its JSON files. Raises UserError when it has none,
    DamagedFileError for files that do not name what the model has.
    """
    if RANGES not in pack.record.files or CONFIG not in pack.record.files:
        raise UserError(
            f"{pack.path} has no ranges of activations; pack the model with --precision mobilequant.",
            field="pack",
            given=str(pack.path),
        )
    ranges, config = (_json(pack, name) for name in FILES)
    found: dict[Where, Grid] = {}
    for where, (module, side) in modules(architecture).items():
        try:
            low, high = (float(end) for end in ranges[module][side])
            bits = int(config[module][side]["bitwidth"])
            if not (np.isfinite([low, high]).all() and low <= 0 <= high and low < high and bits in (8, 16)):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            said = f"it has no range and bits of the {side} of {module}"
            raise DamagedFileError(pack.path / RANGES, said, field=module) from None
        found[where] = affine_grid(np.float64(low), np.float64(high), bits)
    return found


def _json(pack: Pack, name: str) -> Mapping[str, Any]:
    try:
        found = json.loads(pack.read_file(name))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(pack.path / name, "it is not JSON") from error
    if not isinstance(found, dict):
        raise DamagedFileError(pack.path / name, "it does not hold modules")
    return found
