"""How many bits a token reads of an expert whose matrices are nested: the second router of D2MoE at run time.

A level counts the planes above the base (run/forms/nested.py). A bit router is one linear for each expert: of
a token's input it makes a number for each level, and the largest wins (of equal ones the lower level).
Routers read what the router of experts reads. They lie beside a pack in `bit-router.bin`; packs without that
file read all bits.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack
from haversack.kernels import Matrix, matmul
from haversack.models._architecture import Architecture
from haversack.models._experts import experts_of, identity

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
ROUTER_NAME = "bit-router.bin"
MOST_BYTES = 256 * 2**20

_HEAD = struct.Struct("<8sIIIIII")  # magic, version, layers, experts, levels, width, bytes of the JSON
_MAGIC = b"HVBITROU"


class Levels(Protocol):
    """Chooses for every token and each of its experts how many planes are read."""

    def __call__(self, block: int, x: F32, experts: I32) -> I32:
        """x f32 [n, width] that the router of `block` read, and its experts i32 [n, top] -> i32 [n, top]."""


@dataclass(frozen=True)
class Uniform:
    """The same level for all."""

    level: int

    def __call__(self, block: int, x: F32, experts: I32) -> I32:
        """See Levels."""
        return np.full(experts.shape, self.level, np.int32)


class BitRouters:
    """Trained routers: `weights` f16 [layers, experts, levels, width] and `biases` f32 [layers, experts,
    levels], for the model of `identity`; `blocks` are the blocks that have experts, `first` the bits of level
    0."""

    def __init__(
        self, weights: npt.NDArray[np.float16], biases: F32, identity: str, blocks: Sequence[int], first: int
    ) -> None:
        self.weights, self.biases = weights, biases
        self.identity, self.first = identity, first
        self.blocks = tuple(blocks)
        self._layers = {block: layer for layer, block in enumerate(self.blocks)}
        layers, experts, levels, width = weights.shape
        rows = weights.reshape(layers, experts * levels, width)
        self._matrices = [Matrix.from_array(np.asarray(one, np.float32)) for one in rows]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return int(sum(matrix.nbytes for matrix in self._matrices) + self.biases.nbytes)

    def __call__(self, block: int, x: F32, experts: I32) -> I32:
        """See Levels. Row-invariant."""
        layer = self._layers[block]
        count, levels = self.biases.shape[1:]
        scores = matmul(x, self._matrices[layer]).reshape(len(x), count, levels) + self.biases[layer]
        chosen = scores.argmax(axis=2)
        return np.take_along_axis(chosen, experts, axis=1).astype(np.int32)

    def to_bytes(self) -> bytes:
        """The file: sizes, a little JSON, weights and biases, and the CRC-32 of all before."""
        said = {"identity": self.identity, "blocks": list(self.blocks), "first": self.first}
        text = json.dumps(said).encode()
        layers, experts, levels, width = self.weights.shape
        head = _HEAD.pack(_MAGIC, 1, layers, experts, levels, width, len(text))
        data = head + text + self.weights.astype("<f2").tobytes() + self.biases.astype("<f4").tobytes()
        return data + struct.pack("<I", zlib.crc32(data))

    @classmethod
    def of_bytes(cls, data: bytes, path: Path) -> Self:
        """Raises DamagedFileError when the file does not hold."""
        try:
            return cls._read(data)
        except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
            raise DamagedFileError(path, f"it holds no bit routers ({error})") from error

    @classmethod
    def _read(cls, data: bytes) -> Self:
        if len(data) < _HEAD.size + 4 or zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
            raise ValueError("its checksum does not match")
        magic, version, layers, experts, levels, width, count = _HEAD.unpack_from(data)
        if magic != _MAGIC or version != 1:
            raise ValueError("it is of another kind or version")
        numbers = layers * experts * levels
        needed = _HEAD.size + count + 2 * numbers * width + 4 * numbers + 4
        if not numbers or not width or len(data) != needed or needed > MOST_BYTES:
            raise ValueError(f"it has {len(data)} bytes and its sizes need {needed}")
        said: Any = json.loads(data[_HEAD.size : _HEAD.size + count])
        at = _HEAD.size + count
        shape = (layers, experts, levels)
        weights = np.frombuffer(data, "<f2", numbers * width, at).reshape(*shape, width)
        biases = np.frombuffer(data, "<f4", numbers, at + 2 * numbers * width).reshape(shape)
        if not np.isfinite(weights).all() or not np.isfinite(biases).all():
            raise ValueError("it has numbers that are not finite")
        blocks = [int(block) for block in said["blocks"]]
        if len(blocks) != layers:
            raise ValueError(f"it names {len(blocks)} blocks for {layers} layers")
        return cls(weights, biases.astype(np.float32), str(said["identity"]), blocks, int(said["first"]))


def router_of(source: Any, architecture: Architecture) -> BitRouters | None:
    """The bit routers beside a pack; None where there are none.

    Raises DamagedFileError for a file that does not hold, UserError for the routers of another model.
    """
    if not isinstance(source, Pack) or ROUTER_NAME not in source.record.files:
        return None
    path = source.path / ROUTER_NAME
    routers = BitRouters.of_bytes(source.read_file(ROUTER_NAME), path)
    experts = experts_of(architecture)
    fits = experts is not None and (
        routers.blocks == experts.blocks
        and routers.weights.shape[1] == experts.count
        and routers.weights.shape[3] == architecture.width
        and routers.weights.shape[2] == levels_of(source)
        and routers.identity == identity(source, architecture)
    )
    if not fits:
        raise UserError(
            f"{path} was trained for another model ({routers.identity}); pack the model again.",
            field="bit-router",
            given=routers.identity,
        )
    return routers


def levels_of(source: Any) -> int | None:
    """How many levels the nested matrices of a pack have; None where it has none."""
    found = {
        int(entry["last"]) - int(entry["first"]) + 1
        for entry in getattr(source, "forms", {}).values()
        if entry["form"] == "nested"
    }
    return found.pop() if len(found) == 1 else None
