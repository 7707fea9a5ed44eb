"""Nested matrices as D2MoE's method hands them on (d2moe.py has the maths): what is stored, and one model's
experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import not_allowed
from haversack.kernels.nested import Plane, plane_nbytes
from haversack.models._experts import Expert, Experts
from haversack.run.forms.nested import BoundNested
from haversack.shrink._precision import Compressed, InputStatistics, Kept, StoredKind
from haversack.shrink._rounding import F32

if TYPE_CHECKING:
    from haversack.shrink.precision.d2moe import D2Moe

I32 = NDArray[np.int32]


@dataclass(frozen=True)
class NestedTensor:
    """A matrix f32 [rows, columns] at widths `bits`, each one bit wider than the one before.

    `planes`: the base and one residual plane for each further width (kernels/nested.py). With `copies` each
    is a whole matrix of its width instead.
    """

    planes: tuple[Plane, ...]
    bits: tuple[int, ...]
    copies: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all planes, scales and padding included."""
        return sum(plane.nbytes for plane in self.planes)

    def dequant(self, bits: int) -> F32:
        """The matrix of width `bits`. Raises UserError for a width that is not there."""
        return self._bound.dense(self._level(bits))

    def matmul(self, x: F32, bits: int) -> F32:
        """x f32 [n, columns] times the matrix of width `bits`, f32 [n, rows]."""
        out = np.empty((len(x), self.planes[0].rows), np.float32)
        levels = np.full(len(x), self._level(bits), np.int32)
        self._bound.at(levels).multiply(x, out, activations="f32", add=False, bias=None)
        return out

    @property
    def _bound(self) -> BoundNested:
        return BoundNested(self.planes, self.bits[0], not self.copies)

    def _level(self, bits: int) -> int:
        if bits not in self.bits:
            raise not_allowed("bits", bits, self.bits)
        return self.bits.index(bits)


@dataclass(frozen=True)
class StoredNested:
    """How an expert's matrix is stored: planes of widths `first` to `last`, or a copy for each width."""

    first: int
    last: int
    group: int
    copies: bool
    kind: ClassVar[str] = "nested"

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a stored matrix [rows, columns], scales and padding included."""
        widths = range(self.first, self.last + 1)
        return sum(
            plane_nbytes(rows, columns, self.group, bits if base else 1, base)
            for bits in widths
            for base in (self.copies or bits == self.first,)
        )


@dataclass(frozen=True)
class FormedNested:
    """A nested matrix as the pipeline stores it: see Formed."""

    tensor: NestedTensor

    @property
    def form(self) -> Mapping[str, Any]:
        """What pack.json says of it (run/forms/nested.py)."""
        bits, plane = self.tensor.bits, self.tensor.planes[0]
        copies = {"copies": True} if self.tensor.copies else {}
        return {"form": "nested", "first": bits[0], "last": bits[-1], "group": plane.group, **copies}

    def parts(self) -> Mapping[str, NDArray[Any]]:
        """The planes' bytes."""
        names = ["base", *(f"plane{bits}" for bits in self.tensor.bits[1:])]
        return {name: plane.data for name, plane in zip(names, self.tensor.planes, strict=True)}


@dataclass(frozen=True)
class ForModel:
    """The method for one model's `experts`. `made` keeps what it made of them while bit routers are to be
    trained on that."""

    method: D2Moe
    experts: Experts
    made: dict[str, NestedTensor] = field(default_factory=dict)

    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    @property
    def name(self) -> str:
        """As the method's."""
        return self.method.name

    def __str__(self) -> str:
        return str(self.method)

    def for_walk(self, walk: Any) -> ForModel:
        """Itself: it was made for the model."""
        return self

    @cached_property
    def _owners(self) -> dict[str, Expert]:
        return {name: key for key, names in self.experts.tensors.items() for name in names}

    def stored(self, rows: int, columns: int) -> StoredKind:
        """See D2Moe."""
        return self.method.stored(rows, columns)

    def stored_as(self, name: str, rows: int, columns: int) -> StoredKind | StoredNested:
        """How the matrix `name` is stored."""
        if name not in self._owners:
            return self.stored(rows, columns)
        bits, copies = self.method.widths, self.method.layout == "copies"
        return StoredNested(bits[0], bits[-1], self.method.group, copies)

    def noise(self) -> float:
        """See D2Moe."""
        return self.method.noise()

    def quantize(
        self, weights: Mapping[str, F32], inputs: InputStatistics | None
    ) -> Mapping[str, Compressed | FormedNested]:
        """Every matrix of `weights` in nested planes; what is no expert's in the method's `rest`."""
        found: dict[str, Compressed | FormedNested] = {}
        for name, weight in weights.items():
            if name not in self._owners:
                found[name] = Kept(StoredKind(self.method.rest), weight)
                continue
            tensor = self._nested(weight, None if inputs is None else inputs.hessian)
            found[name] = FormedNested(tensor)
            if self.method.target_bits:
                self.made[name] = tensor
        return found

    def _nested(self, weight: F32, hessian: NDArray[np.float64] | None) -> NestedTensor:
        from haversack.shrink.precision.d2moe import copies_quantize, mwq_quantize

        method = self.method
        own = None if hessian is None else hessian.copy()
        if method.layout == "copies":
            return copies_quantize(weight, method.widths, method.group, method.damping, hessian=own)
        given = (method.widths, method.group, method.compensate, method.damping)
        return mwq_quantize(weight, None, *given, hessian=own, pad=True)

    def finish(self, source: Any, walk: Any, texts: I32, seed: int) -> dict[str, bytes]:
        """Files beside the pack, once every expert is nested: the bit routers, where they are wanted."""
        if not self.method.target_bits:
            return {}
        from haversack.run._levels import ROUTER_NAME
        from haversack.shrink._bit_routers import train_bit_router

        routers = train_bit_router(
            source,
            walk,
            self.experts,
            self.made,
            texts,
            target_bits=self.method.target_bits,
            capacity=self.method.capacities() or None,
            alpha=self.method.alpha or None,
            steps=self.method.steps,
            seed=seed,
        )
        return {ROUTER_NAME: routers.to_bytes()}
