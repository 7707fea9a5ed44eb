"""D2MoE, nested bits: every expert once, its 2-bit matrix inside its 3-bit one inside its 4-bit one, and a
small router that says how many bits a token reads.

Paper: Wang et al., "D2MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving"
(2025).
What is here: Matryoshka weight quantization. The base of an expert's matrix has `base` bits, asymmetric, with
a scale and a zero for each group of inputs; each of `planes` more bits is the sign of what is left, times a
scale: W_k = W_(k-1) + s_k sign(W - W_(k-1)). Scales are the minima of what errors cost on calibration text,
and the error of one level is spread over the inputs that are not rounded yet, as in GPTQ. Planes lie apart in
the expert store, each one aligned read. With `target_bits` a bit router is trained for every expert
(shrink/_bit_routers.py) and kept beside the pack: it chooses the level for each token and expert, to a mean
of so many bits. What is no expert stays in f16.
What we changed: all levels of a group are rounded together and the error of the widest is spread
(`compensate=top`); the paper's listing runs level by level, which spreads the narrowest's and makes wider
levels worse than none [inferred]. The error is spread after each input, the paper spreads it after a block
without corrections inside. The base's grid is, of several clipped ones, the one that suits the level whose
error is spread; an input's error counts by what is left of it once later inputs made good.
Cost: as GPTQ, with a Hessian for each expert. Training bit routers needs PyTorch and all experts in f32.
Limits: 2 + 1 + 1 bits in groups of 128 take 4.5 bits a weight; f32 activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.kernels.nested import MOST_BITS, plane_nbytes
from haversack.models._experts import Expert, Experts
from haversack.shrink._precision import Compressed, InputStatistics, Kept, StoredKind, expected_noise
from haversack.shrink._rounding import F32
from haversack.shrink.precision._nested import NestedTensor, copies_quantize, mwq_quantize

I32 = NDArray[np.int32]


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
class D2Moe(Method):
    name = "d2moe"
    stage = "shrink"
    slot = "precision"
    paper = (
        "Wang et al., D2MoE: Dual Routing and Dynamic Scheduling for On-Device MoE-based LLM Serving (2025)"
    )
    summary = "Experts in nested bits, as many of which are read as a bit router gives each token; else f16."
    system = 27
    provides = frozenset(
        {
            "weight-type:f32",
            "weight-type:f16",
            "weight-type:int8",
            "weight-type:nested",
            "weight-layout:rows-1",
        }
    )
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    base: int = parameter(2, allowed=(2, 3, 4, 5), help="bits of the narrowest level")
    planes: int = parameter(2, allowed=(0, 1, 2, 3), help="levels above it, of one more bit each")
    group: int = parameter(
        128, allowed=(32, 64, 128), help="inputs that share a scale; the last may be fewer"
    )
    compensate: str = parameter(
        "top",
        allowed=("none", "bottom", "middle", "top"),
        help="the level whose error is spread over inputs not rounded yet",
    )
    damping: float = parameter(
        0.01, allowed=(0.001, 0.003, 0.01, 0.03, 0.1), help="share of the mean diagonal added"
    )
    layout: str = parameter(
        "nested", allowed=("nested", "copies"), help="copies: a matrix of its own for every level"
    )
    rest: str = parameter("f16", allowed=("f16", "f32"), help="kind of all matrices but the experts'")
    target_bits: float = parameter(
        0.0, help="mean bits that trained bit routers choose; 0: no routers, all bits are read"
    )
    capacity: str = parameter(
        "", help="share of a step's tokens that may take each level while routers are trained, as .3/.4/.3"
    )
    alpha: float = parameter(
        0.0, help="weight of the mean bits in the routers' loss; 0: found for target_bits"
    )
    steps: int = parameter(300, help="steps of 1,024 tokens that routers are trained for")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base + self.planes > MOST_BITS:
            raise UserError(
                f"{self.base} bits and {self.planes} planes are more than {MOST_BITS} bits.",
                field="planes",
                given=self.planes,
                nearest=MOST_BITS - self.base,
            )
        if self.target_bits and not self.base < self.target_bits < self.base + self.planes:
            raise UserError(
                f"target_bits={self.target_bits} is not between the {self.base} and "
                f"{self.base + self.planes} bits of the levels.",
                field="target_bits",
                given=self.target_bits,
                nearest=self.base + self.planes / 2,
            )
        if self.steps < 1:
            raise UserError(f"steps={self.steps} trains nothing.", field="steps", given=self.steps, nearest=1)
        self.capacities()

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths."""
        return tuple(range(self.base, self.base + self.planes + 1))

    def capacities(self) -> tuple[float, ...]:
        """The capacity of each level; () where none is given. Raises UserError for shares that cannot be."""
        from haversack.shrink._bit_routers import checked_capacity

        if not self.capacity:
            return ()
        try:
            shares = tuple(float(part) for part in self.capacity.split("/"))
        except ValueError:
            shares = ()
        return checked_capacity(shares, self.capacity, len(self.widths))

    def for_walk(self, walk: Any) -> D2Moe | ForModel:
        """The method for a model that has experts."""
        experts = getattr(walk, "all_experts", None)
        return self if experts is None else ForModel(self, experts)

    def refused(self, walk: Any) -> Mapping[str, str]:
        """Every matrix of a model without experts."""
        if getattr(walk, "all_experts", None) is not None:
            return {}
        inside = (name for block in range(walk.blocks) for name in walk.names(block))
        return {name: "the model has no experts" for name in inside if walk.is_matrix(name)}

    def stored(self, rows: int, columns: int) -> StoredKind:
        """How a matrix that is no expert's is stored."""
        return StoredKind(self.rest)

    def noise(self) -> float:
        """Expected squared error over the weights' mean square, of experts at all their bits: that of the
        base, of which each plane leaves about a quarter, less what the method makes good."""
        return 0.6 * expected_noise(self.base, self.group, "searched") * 0.25**self.planes

    def quantize(
        self, weights: Mapping[str, F32], inputs: InputStatistics | None
    ) -> Mapping[str, Compressed]:
        """Without a model's experts (see `for_walk`) there is nothing to nest."""
        raise UserError(
            "d2moe nests the bits of experts, and the model has none; use round-to-nearest.",
            field="precision",
            given=self.name,
            nearest="round-to-nearest",
        )


@dataclass(frozen=True)
class ForModel:
    """The method for one model's `experts`. `made` keeps what it made of them while bit routers are to be
    trained on that."""

    method: D2Moe
    experts: Experts
    made: dict[str, NestedTensor] = field(default_factory=dict)

    needs: ClassVar[frozenset[str]] = D2Moe.needs

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
