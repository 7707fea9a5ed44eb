"""DHSA's boundary predictor: how likely a chunk begins behind each token, from the keys around the gap.

One small network for all layers. Its input are keys as they lie in the cache: rotated, before heads are
repeated, all key heads side by side. It looks at the 2w keys around a gap, so what it says of a gap depends
on nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError
from haversack.kernels import Matrix, feature_width, gap_features, gate, matmul
from haversack.models._architecture import Architecture, Attention

F32 = npt.NDArray[np.float32]

FILE = "boundaries.safetensors"
"""The predictor's name in a pack."""
HIDDEN = 256
EPS = 1e-5
THRESHOLD = 1.1
PIECE = 1024
"""Gaps that are judged at once."""
MOST_HEADS = 8
"""Heads that a plan of memory reckons with."""
ADVICE = "train one into the pack: haversack pack MODEL --attention dhsa, or take mode=dhsa_topk"


def shapes(channels: int, hidden: int = HIDDEN) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a predictor over `channels` = key heads x head width."""
    return {
        "inputs.weight": (3 * channels, channels),
        "inputs.bias": (3 * channels,),
        "output.weight": (channels, channels),
        "output.bias": (channels,),
        "norm.weight": (channels,),
        "norm.bias": (channels,),
        "first.weight": (hidden, 4 * channels + 1),
        "first.bias": (hidden,),
        "second.weight": (1, hidden),
        "second.bias": (1,),
    }


def first_attention(architecture: Architecture) -> tuple[int, Attention]:
    """The first block with attention and its attention: its keys are what borders are predicted from. Raises
    UserError for a model without any."""
    for block in architecture.blocks:
        if block.attention is not None:
            return block.index, block.attention
    raise UserError(f"{architecture.family} has no attention to make sparse.", field="attention")


def fingerprint(source: Any, architecture: Architecture) -> str:
    """What a predictor knows its model by: a sum of the first block's key matrix as it is stored."""
    name = first_attention(architecture)[1].key.weight
    digest = hashlib.sha256()
    for tensor in source.tensors:
        if tensor == name or tensor.startswith(f"{name}."):
            digest.update(source.bytes(tensor))
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class BoundaryPredictor:
    """Self-attention over the 2w keys around a gap, a layer norm, the means of both sides l and r, and two
    linear layers over [l, r, |l - r|, l * r, cos(l, r)].

    `window` is w, `heads` those of the self-attention; `threshold` the logit above which a gap may be a
    border, `model` the fingerprint of the model it was trained on.
    """

    tensors: Mapping[str, F32]
    heads: int
    window: int
    model: str
    threshold: float = THRESHOLD

    @property
    def channels(self) -> int:
        return len(self.tensors["norm.weight"])

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a predictor's file. Raises UserError when it cannot be read, DamagedFileError when it is no
        predictor."""
        from haversack.formats.safetensors import SafetensorsFile

        file = SafetensorsFile.open(path)
        try:
            heads, window = int(file.metadata["heads"]), int(file.metadata["window"])
            model, threshold = file.metadata["model"], float(file.metadata["threshold"])
        except (KeyError, ValueError) as error:
            raise DamagedFileError(path, "it is no boundary predictor") from error
        found: dict[str, F32] = {}
        for name, entry in file.tensors.items():
            if entry.kind == "f32":
                found[name] = np.frombuffer(file.bytes(name), "<f4").reshape(entry.shape)
        norm, first = found.get("norm.weight"), found.get("first.weight")
        if norm is None or first is None or norm.ndim != 1 or first.ndim != 2:
            raise DamagedFileError(path, "it is no boundary predictor")
        wanted = shapes(len(norm), len(first))
        if {name: tensor.shape for name, tensor in found.items()} != wanted:
            raise DamagedFileError(path, "its tensors do not fit each other")
        if window < 1 or heads < 1 or len(norm) % heads:
            raise DamagedFileError(path, f"{heads} heads and a window of {window} cannot be")
        return cls(found, heads, window, model, threshold)

    def write(self, path: Path) -> None:
        """Write the file that `open` reads."""
        from haversack.formats.safetensors import write_safetensors

        metadata = {"heads": str(self.heads), "window": str(self.window), "model": self.model}
        metadata["threshold"] = repr(self.threshold)
        rows = [(name, "f32", each.shape, each.tobytes()) for name, each in self.tensors.items()]
        write_safetensors(path, rows, metadata)

    def require(self, source: Any, architecture: Architecture, where: object) -> None:
        """Raises UserError when the predictor does not belong to the model."""
        _, attention = first_attention(architecture)
        channels = attention.key_value_heads * attention.head_width
        if self.channels != channels:
            raise UserError(
                f"{where} was trained on keys of {self.channels} numbers and the model's have {channels} "
                f"({attention.key_value_heads} heads of {attention.head_width}); {ADVICE}.",
                field="predictor",
                given=self.channels,
                nearest=channels,
            )
        if self.model != fingerprint(source, architecture):
            raise UserError(
                f"{where} was trained on another model's keys; {ADVICE}.", field="predictor", given=self.model
            )

    def logits(self, keys: F32) -> F32:
        """keys f32 [n, channels] -> f32 [n]: number i is about the gap behind key i. Keys outside count as
        zeros."""
        n, w = len(keys), self.window
        padded = np.zeros((n + 2 * w - 1, self.channels), np.float32)
        padded[w - 1 : w - 1 + n] = keys
        out = np.empty(n, np.float32)
        for begin in range(0, n, PIECE):
            end = min(begin + PIECE, n)
            out[begin:end] = self._piece(padded[begin : end + 2 * w - 1])
        return out

    def _piece(self, keys: F32) -> F32:
        tensors = self.tensors
        matrix, bias = self._inputs
        norm = tensors["output.bias"], tensors["norm.weight"], tensors["norm.bias"]
        features = gap_features(matmul(keys, matrix, bias=bias), self.heads, self.window, *norm, EPS)
        inner = matmul(features, self._first, bias=tensors["first.bias"])
        gate(inner, None, "relu", out=inner)
        out: F32 = matmul(inner, self._second, bias=tensors["second.bias"])[:, 0]
        return out

    @cached_property
    def _inputs(self) -> tuple[Matrix, F32]:
        """Matrix and bias that make of a key its query, scaled; its key; and, for each head, what its value
        adds behind the output matrix: one product a key instead of one for each window that a key is in."""
        channels, width = self.channels, self.channels // self.heads
        weight, bias = (self.tensors[f"inputs.{name}"].astype(np.float64) for name in ("weight", "bias"))
        both = np.concatenate([weight, bias[:, None]], axis=1)
        both[:channels] *= width**-0.5
        output = self.tensors["output.weight"].astype(np.float64)
        heads = np.split(np.arange(channels), self.heads)
        added = [output[:, head] @ both[2 * channels + head] for head in heads]
        joined = np.concatenate([both[: 2 * channels], *added]).astype(np.float32)
        return Matrix.from_array(np.ascontiguousarray(joined[:, :-1])), np.ascontiguousarray(joined[:, -1])

    @cached_property
    def _first(self) -> Matrix:
        weight = self.tensors["first.weight"]
        behind = feature_width(self.channels) - weight.shape[1]
        return Matrix.from_array(np.pad(weight, ((0, 0), (0, behind))))

    @cached_property
    def _second(self) -> Matrix:
        return Matrix.from_array(self.tensors["second.weight"])


def judging_nbytes(channels: int) -> int:
    """Bytes that a predictor of up to MOST_HEADS heads takes: what it is, what is made of it once, and a
    piece of the text that is judged."""
    inputs, features = (2 + MOST_HEADS) * channels, feature_width(channels)
    own = sum(math.prod(shape) for shape in shapes(channels).values())
    made = inputs * (channels + 1) + HIDDEN * features
    floats = (
        own + made + 2 * (2 * channels + 1) * inputs + PIECE * (channels + inputs + features + 2 * HIDDEN)
    )
    return int(4 * floats)
