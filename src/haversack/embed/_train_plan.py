"""What a network that learns will hold: its schedule, its arena, what learns; and what does not go."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError, not_allowed
from haversack.embed._train_emission import Kernels, Place, carried, places_of
from haversack.embed._train_graph import Wanted, factors_by, prepared, step_graph, wanted_by
from haversack.embed._train_ops import in_kind, wide_tensors
from haversack.embed._train_rules import patch_name, patch_nbytes
from haversack.embed._train_twin import Recipe, Twin
from haversack.embed.halves import LARGEST, packed, rounded
from haversack.models.graph import plan
from haversack.models.graph._ir import Conv2d, Graph
from haversack.models.graph.plan import Arena, Life
from haversack.models.graph.training import HEAD

Array = npt.NDArray[Any]

PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
OF_CODES = ("int8-qas", "int8")
LOSSES = ("cross-entropy", "mean-square")
SEED = 23
EXAMPLES_MOST = 1024


@dataclass(frozen=True)
class Training:
    """How a network learns. `scheme`: see `wanted_by`; `precision`: fp32, fp16, bf16 (networks of floats),
    int8-qas, int8 (of codes; None: what fits); `sums` of 16-bit floats: same or f32; `wide`: layers (names of
    weights) that stay in 32 bits; `rate` of the golden steps alone."""

    scheme: str = "all"
    loss: str = "cross-entropy"
    classes: int | None = None
    precision: str | None = None
    sums: str = "same"
    wide: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    kernels: Kernels = field(default_factory=Kernels)
    rate: float = 0.01
    seed: int = SEED

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise not_allowed("loss", self.loss, LOSSES)
        if self.precision not in (None, *PRECISIONS, *OF_CODES):
            raise not_allowed("precision", self.precision, (*PRECISIONS, *OF_CODES))
        if self.sums not in ("same", "f32"):
            raise not_allowed("sums", self.sums, ("same", "f32"))
        if not 0 <= self.recipe.momentum < 1:
            raise UserError(
                f"momentum={self.recipe.momentum:g} is not below 1 and at least 0; use 0.9.",
                field="momentum",
                given=self.recipe.momentum,
                nearest=0.9,
            )
        scale = self.recipe.loss_scale
        if not (scale > 0 and math.isfinite(scale) and math.frexp(scale)[0] == 0.5):
            raise UserError(
                f"loss_scale={scale:g} is no power of two; use 256.",
                field="loss_scale",
                given=scale,
                nearest=256,
            )
        if not 1 <= self.recipe.examples <= EXAMPLES_MOST:
            raise UserError(
                f"examples={self.recipe.examples} is not supported (allowed 1 to {EXAMPLES_MOST}).",
                field="examples",
                given=self.recipe.examples,
                nearest=min(max(self.recipe.examples, 1), EXAMPLES_MOST),
            )
        if self.classes is not None and self.classes < 2:
            raise UserError(
                f"classes={self.classes} is below 2.", field="classes", given=self.classes, nearest=2
            )


@dataclass(frozen=True)
class TrainPlan:
    """A step and a pass, planned. `graph`: the schedule of a step; `pass_graph`: of inference."""

    name: str
    training: Training
    graph: Graph
    pass_graph: Graph
    arena: Arena
    pass_arena: Arena
    learned: dict[str, Place]
    parameters: dict[str, Array] = field(repr=False)

    @property
    def kind(self) -> str:
        """fp32, fp16, bf16, int8-qas or int8."""
        return str(self.training.precision)

    @property
    def sums(self) -> str:
        """In which sums of floats are taken."""
        return "f32" if self.kind not in ("fp16", "bf16") else self.training.sums

    @property
    def arena_nbytes(self) -> int:
        """What a step and a pass work in."""
        return max(self.arena.nbytes, self.pass_arena.nbytes)

    @property
    def learned_nbytes(self) -> int:
        """What learns."""
        return plan.parameter_nbytes(self.graph)

    @property
    def carried_nbytes(self) -> int:
        """Velocities, finer copies, sums of the gradients of several examples."""
        count = sum(place.size for place in self.learned.values())
        return 4 * count * len(carried(self.training.recipe))

    @property
    def ram_nbytes(self) -> int:
        """All of it, stack and code apart."""
        return self.arena_nbytes + self.learned_nbytes + self.carried_nbytes

    def twin(self) -> Twin:
        """A fresh network in numpy that learns as the C does."""
        held = {name: np.array(values) for name, values in self.parameters.items()}
        return Twin(self.graph, held, self.sums, self.training.recipe)

    def outputs(self, twin: Twin, inputs: Array) -> Array:
        """f32 [rows, outputs] of what `twin` has learned."""
        seen = Twin(self.pass_graph, twin.parameters, self.sums)
        (name,) = self.pass_graph.inputs
        found = [seen.run({name: row})[self.pass_graph.outputs[0]] for row in inputs]
        return np.concatenate([np.asarray(each, np.float32).reshape(1, -1) for each in found])

    def block(self, parameters: dict[str, Array]) -> bytes:
        """What learns, as it lies in the C's memory."""
        found = bytearray(self.learned_nbytes)
        for name, place in self.learned.items():
            values = parameters[name]
            if place.channels is not None:
                values = values[..., np.array(place.channels, np.intp)]
            dtype = self.graph.tensors[name].dtype
            if dtype in ("f32", "f16", "bf16"):
                values = packed(values, dtype)
            found[place.offset : place.offset + values.nbytes] = np.ascontiguousarray(values).tobytes()
        return bytes(found)


def planned(graph: Graph, training: Training) -> TrainPlan:
    """The step of `graph`. Raises UserError for a scheme that does not fit it, for what has no way back, for
    a precision that its numbers are not of."""
    codes = graph.tensors[graph.inputs[0]].dtype == "int8"
    precision = training.precision or ("int8-qas" if codes else "fp32")
    if codes != (precision in OF_CODES):
        fits = OF_CODES if codes else tuple(PRECISIONS)
        raise UserError(
            f"precision={precision} does not fit {graph.name}, a network of {'codes' if codes else 'floats'} "
            f"(allowed {', '.join(fits)}); use {fits[0]}.",
            field="precision",
            given=precision,
            nearest=fits[0],
        )
    training = replace(training, precision=precision)
    refuse_recipe(training, precision)
    ready = prepared(graph, training.loss, training.classes, training.seed)
    wanted: Wanted = wanted_by(ready, training.scheme, training.seed)
    if not wanted:
        raise UserError(f"the scheme {training.scheme} lets nothing learn.", field="train")
    steps = step_graph(ready, wanted, factors_by(ready, precision, wanted), training.loss)
    inference = replace(ready, name=graph.name)
    kind = PRECISIONS.get(precision, "f32")
    if kind != "f32":
        layers = frozenset(_layers(ready, training.wide))
        steps = in_kind(steps, kind, wide_tensors(steps, layers))
        inference = in_kind(inference, kind, wide_tensors(inference, layers))
        refuse_overflow(inference, kind)
    parameters = {
        name: rounded(values, dtype)
        if (dtype := steps.tensors[name].dtype) != "int8" and dtype != "int32"
        else values
        for name, values in ready.constants.items()
        if name in steps.tensors
    }
    learned = {name: parameters[name] for name in wanted}
    return TrainPlan(
        graph.name,
        training,
        replace(steps, constants={**steps.constants, **_rest(parameters, learned)}),
        replace(inference, constants={**inference.constants, **_rest(parameters, learned)}),
        plan.arena([*plan.lifetimes(steps), *_patches(steps, training.kernels)]),
        plan.arena([*plan.lifetimes(inference), *_patches(inference, training.kernels)]),
        places_of(steps),
        learned,
    )


def refuse_recipe(training: Training, precision: str) -> None:
    """Raises UserError for a part of the recipe that numbers of `precision` have no use for."""
    recipe = training.recipe
    if recipe.master and precision not in ("fp16", "bf16"):
        raise UserError(
            f"master copies are for 16-bit floats, and precision={precision}; leave them out.",
            field="master",
            given=precision,
            nearest="fp16",
        )
    if recipe.decay and precision in OF_CODES:
        raise UserError(
            f"decay={recipe.decay:g} is for floats, and precision={precision} learns in codes; use 0.",
            field="decay",
            given=recipe.decay,
            nearest=0,
        )
    if training.wide and precision not in ("fp16", "bf16"):
        raise UserError(
            f"wide layers are for 16-bit floats, and precision={precision}; leave them out.",
            field="wide",
            given=list(training.wide),
        )


def _rest(parameters: dict[str, Array], learned: dict[str, Array]) -> dict[str, Array]:
    return {name: values for name, values in parameters.items() if name not in learned}


def _layers(graph: Graph, wide: tuple[str, ...]) -> tuple[str, ...]:
    names = [op.weight for op in graph.linears()]
    found = [HEAD[0] if name == "head" and HEAD[0] in names else name for name in wide]
    for name in found:
        if name not in names:
            raise UserError(
                f"{name} is no layer of {graph.name} (allowed {', '.join(names)}).", field="wide", given=name
            )
    return tuple(found)


def _patches(graph: Graph, kernels: Kernels) -> list[Life]:
    return [
        Life((patch_name(op),), nbytes, number, number)
        for number, op in enumerate(graph.ops)
        if isinstance(op, Conv2d) and (nbytes := patch_nbytes(graph, op, kernels))
    ]


def refuse_overflow(graph: Graph, kind: str) -> None:
    """Raises UserError for a weight beyond what `kind` holds."""
    for name, values in graph.constants.items():
        if graph.tensors[name].dtype == kind and np.abs(values).max(initial=0) > LARGEST[kind]:
            raise UserError(
                f"{name} of {graph.name} holds {np.abs(values).max():g}, beyond {LARGEST[kind]:g}, the "
                f"largest number of {kind}; use bf16 or fp32.",
                field="precision",
                given=kind,
                nearest="bf16",
            )


def refuse_beyond(
    made: TrainPlan, graph: Graph, ram_kib: float | None, storage_kib: float | None, flash: int
) -> None:
    """Raises UserError when a step does not fit: what would, the tensors at the peak, what the head alone
    takes."""
    if ram_kib is not None and made.ram_nbytes > ram_kib * 1024:
        lives = made.arena.lives
        fullest = max(
            {life.first for life in lives},
            key=lambda number: sum(life.nbytes for life in lives if life.first <= number <= life.last),
        )
        peak = sorted(
            (life for life in lives if life.first <= fullest <= life.last), key=lambda life: -life.nbytes
        )
        names = ", ".join(f"{life.names[0]} ({life.nbytes:,} bytes)" for life in peak[:4])
        least = ""
        if made.training.scheme != "head" and made.training.loss == "cross-entropy":
            head = planned(graph, replace(made.training, scheme="head")).ram_nbytes
            least = f" The head alone takes {head / 1024:.2f} KiB."
        raise UserError(
            f"a step of {made.name} by {made.training.scheme} takes {made.ram_nbytes / 1024:.2f} KiB of RAM "
            f"({made.arena_nbytes:,} bytes of arena, {made.learned_nbytes + made.carried_nbytes:,} of what "
            f"learns; --ram-kib {ram_kib:g}); at the peak, operation {fullest}, live {names}.{least}",
            field="ram_kib",
            given=ram_kib,
            nearest=-(-made.ram_nbytes // 1024),
        )
    if storage_kib is not None and flash > storage_kib * 1024:
        largest = max(graph.constants, key=lambda name: graph.tensors[name].nbytes)
        raise UserError(
            f"{made.name} takes {flash / 1024:.2f} KiB of storage for constants alone (--storage-kib "
            f"{storage_kib:g}), most of it {largest} ({graph.tensors[largest].nbytes:,} bytes).",
            field="storage_kib",
            given=storage_kib,
            nearest=-(-flash // 1024),
        )
