"""The C of a training step in the making: what learns lies in one block of RAM, all else where inference has
it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from haversack.embed._c import literal, rendered
from haversack.embed._emission import Emission
from haversack.embed._graph_c import kernel_text, struct_text
from haversack.embed._train_twin import Recipe
from haversack.embed.halves import packed
from haversack.models.graph._gradients import STEPS, BiasStep
from haversack.models.graph._ir import Graph

TYPES = {
    "int8": "int8_t",
    "int32": "int32_t",
    "f32": "float",
    "f16": "nn_real",
    "bf16": "nn_real",
    "bit": "uint8_t",
}
TILE = re.compile(r"conv2d_(\d+)x(\d+)")
BLOCK = re.compile(r"(conv2d_step|conv2d_input)_(\d+)")
WIDTHS = {"int8": 1, "f16": 2, "bf16": 2, "f32": 4, "int32": 4}


@dataclass(frozen=True)
class Kernels:
    """Which kernels convolutions take: `rows` x `columns` sums at once of those that are laid out as matrices
    (0: they go over the picture itself), channels at once in the gradients of `weights` and of `inputs`;
    `layers`: others for some, by the name of the weight."""

    rows: int = 0
    columns: int = 0
    weights: int = 8
    inputs: int = 8
    layers: tuple[tuple[str, Kernels], ...] = ()

    def of(self, weight: str) -> Kernels:
        """Those of a layer."""
        return dict(self.layers).get(weight, self)

    @property
    def label(self) -> str:
        """As the command line says it."""
        return "measured" if self.layers else f"{self.rows}x{self.columns}" if self.rows else "direct"


@dataclass(frozen=True)
class Place:
    """Where what learns of a parameter lies: bytes from `offset`, numbers from `first` in arrays of one
    number each; `channels` of the last dimension, None for all."""

    offset: int
    first: int
    shape: tuple[int, ...]
    channels: tuple[int, ...] | None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def places_of(graph: Graph) -> dict[str, Place]:
    """A place for every parameter that the step `graph` changes, the widest numbers first, so that no byte
    is lost between them."""
    wanted: dict[str, tuple[int, ...] | None] = {}
    for op in graph.ops:
        if isinstance(op, STEPS):
            wanted[op.parameter] = None if isinstance(op, BiasStep) else op.channels
    found: dict[str, Place] = {}
    offset = first = 0
    for name in sorted(wanted, key=lambda name: -WIDTHS[graph.tensors[name].dtype]):
        tensor, channels = graph.tensors[name], wanted[name]
        shape = tensor.shape if channels is None else (*tensor.shape[:-1], len(channels))
        found[name] = Place(offset, first, shape, channels)
        offset += math.prod(shape) * WIDTHS[tensor.dtype]
        first += math.prod(shape)
    return found


@dataclass
class TrainEmission(Emission):
    """`learned`: where what learns lies. `ops`: kind of number -> kernels that are called."""

    learned: Mapping[str, Place] = field(default_factory=dict)
    ops: dict[str, set[str]] = field(default_factory=dict)
    back: dict[str, set[str]] = field(default_factory=dict)
    kernels: Kernels = field(default_factory=Kernels)
    recipe: Recipe = field(default_factory=Recipe)
    sums: str = "f32"

    def kind(self, name: str) -> str:
        """The type of a tensor's numbers."""
        return self.graph.tensors[name].dtype

    def at(self, name: str) -> str:
        """See Emission."""
        return f"({TYPES[self.kind(name)]} *)(nn_arena + {self.plan.places()[name][0]})"

    def seen(self, name: str) -> str:
        """See Emission."""
        return f"(const {TYPES[self.kind(name)]} *)(nn_arena + {self.plan.places()[name][0]})"

    def bits(self, name: str | None) -> str:
        """Bits of a bound, `0` for none."""
        return "0" if name is None else self.at(name)

    def use(self, kind: str, name: str) -> str:
        """The C name of a kernel of the way forward."""
        self.ops.setdefault(kind, set()).add(name)
        return f"nn_{name}_{kind}"

    def use_back(self, kind: str, name: str) -> str:
        """The C name of a kernel of the way back or of an update."""
        self.back.setdefault(kind, set()).add(name)
        return f"nn_{name}_{kind}"

    def ram(self, name: str) -> str:
        """What learns of a parameter."""
        return f"({TYPES[self.kind(name)]} *)(nn_learned.bytes + {self.learned[name].offset})"

    def held(self, name: str | None) -> str:
        """See Emission: in RAM where all of it learns, else the constant."""
        if name is not None and name in self.learned and self.learned[name].channels is None:
            return self.ram(name)
        return self.flash(name)

    def flash(self, name: str | None) -> str:
        """The constant itself."""
        if name is None:
            return "0"
        kind = self.kind(name)
        if kind in ("f16", "bf16"):
            bits = packed(self.graph.constants[name], kind).view(np.int16)
            return f"(const nn_real *){self.constant(name, bits)}"
        return super().held(name)

    def part(self, name: str) -> tuple[str, str, int]:
        """Learned weights of some channels, which ones, how many; `0, 0, 0` where none are apart."""
        place = self.learned.get(name)
        if place is None or place.channels is None:
            return "0", "0", 0
        return self.ram(name), self.channel_table(place.channels, name), len(place.channels)

    def channel_table(self, channels: tuple[int, ...], name: str) -> str:
        """A constant with the indices of channels."""
        return self.constant(f"{name}.channels", np.array(channels, np.int16))

    def learning(self, op: Any) -> None:
        """Say what scales the next step and what it carries along."""
        factors = "0" if op.factors is None else self.held(op.factors)
        self.call(f"learning.factors = {factors}")
        for name in carried(self.recipe):
            self.call(f"learning.{name} = nn_{name} + {self.learned[op.parameter].first}")


def carried(recipe: Recipe) -> list[str]:
    """What steps carry along, a float for each number that learns."""
    wishes = (("velocity", recipe.momentum), ("finer", recipe.master), ("sums", recipe.examples > 1))
    return [name for name, wish in wishes if wish]


def training_kernels(made: TrainEmission) -> str:
    """The functions that the calls need, each once."""
    parts = []
    integers = made.ops.get("int8", set())
    if made.integer:
        parts.append(kernel_text(made) if made.used - {"scales"} else "")
        scaled = made.graph.rounding == "fixed" and bool(made.used & {"add", "mean"})
        parts.append(rendered("train_int8.c.j2", rounding=made.graph.rounding, used=integers, scaled=scaled))
    elif "pad" in made.used:
        parts.append(rendered("pad.c.j2", kind="float"))
    kinds = {kind for kind in (*made.ops, *made.back) if kind in ("f16", "bf16")}
    narrow = made.sums == "same"
    parts += [rendered("half.c.j2", kind=kind, fused=narrow) for kind in sorted(kinds)]
    for kind in ("f32", "f16", "bf16"):
        if kind in made.ops:
            parts.append(forward_text(kind, narrow, made.ops[kind]))
    for kind in ("int8", "f32", "f16", "bf16"):
        if kind in made.back:
            parts.append(back_text(kind, narrow, made.back[kind], made.recipe))
    return "\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def forward_text(kind: str, narrow: bool, used: set[str]) -> str:
    """Kernels of the way forward for floats of a kind."""
    tiles = [tuple(map(int, found.groups())) for name in used if (found := TILE.fullmatch(name))]
    return rendered(
        "train_forward.c.j2",
        kind=kind,
        number=TYPES[kind],
        narrow=narrow and kind != "f32",
        used=used,
        tiles=sorted(tiles),
    )


def back_text(kind: str, narrow: bool, names: set[str], recipe: Recipe) -> str:
    """Kernels of the way back for numbers of a kind."""
    blocks: dict[str, list[int]] = {"conv2d_step": [], "conv2d_input": []}
    used = set(names)
    for name in names:
        if found := BLOCK.fullmatch(name):
            blocks[found[1]].append(int(found[2]))
            used.add(found[1])
    steps = {name for name in used if name.endswith("_step")}
    if steps - ({"bias_step"} if kind == "int8" else set()):
        used.add("step")
    return rendered(
        "back_ops.c.j2",
        kind=kind,
        value=TYPES[kind],
        number=TYPES["f32" if kind == "int8" else kind],
        narrow=narrow and kind in ("f16", "bf16"),
        used=used,
        blocks={name: sorted(each) for name, each in blocks.items()},
        momentum=literal(recipe.momentum, "float32") if recipe.momentum else "",
        decay=literal(recipe.decay, "float32") if recipe.decay else "",
        unscaled=literal(1 / recipe.loss_scale, "float32") if recipe.loss_scale != 1 else "",
        finer=recipe.master,
        several=literal(1 / recipe.examples, "float32") if recipe.examples > 1 else "",
    )


def training_structs(made: TrainEmission) -> str:
    """The types that calls need."""
    text = "typedef uint16_t nn_real;\n" if {"f16", "bf16"} & {*made.ops, *made.back} else ""
    if made.integer:
        text += struct_text(made)
    lines = ["float rate;", "const float *factors;"]
    lines += [f"float *{name};" for name in carried(made.recipe)]
    lines += ["int last;"] if made.recipe.examples > 1 else []
    body = "\n    ".join(lines)
    return f"{text}\n/* How a step is taken. */\ntypedef struct {{\n    {body}\n}} nn_learning;\n"
