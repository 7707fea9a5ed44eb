"""The C of a graph in the making: constants named and written once, places in the arena, windows, scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.embed._c import array, identifier
from haversack.embed.overlaps import backwards
from haversack.models.graph._integer import multipliers
from haversack.models.graph._ir import Conv2d, Graph, Op, Quantization
from haversack.models.graph.plan import Arena
from haversack.models.series.recurrent import Layer

Array = npt.NDArray[Any]

C_TYPES = {"int8": "int8_t", "f32": "float", "int32": "int32_t"}

WINDOW = """    static const nn_window {name} = {{
        {height}, {width}, {channels}, {kh}, {kw}, {sy}, {sx}, {top}, {left}, {oh}, {ow}, {outputs}
    }};
"""


@dataclass
class Emission:
    """The C of a graph in the making, and what it costs."""

    graph: Graph
    plan: Arena
    integer: bool
    weights: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    layers: list[Layer] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    constant_bytes: int = 0
    state: int = 0
    scratch: int = 0
    macs: int = 0
    windows: int = 0
    choices: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    tasks: int = 0
    spent: dict[str, int] = field(default_factory=dict)
    """Products with an addition by the kind of kernel that takes them."""

    def at(self, name: str) -> str:
        """A tensor's place as a pointer."""
        offset = self.plan.places()[name][0]
        kind = C_TYPES[self.graph.tensors[name].dtype]
        return f"({kind} *)(nn_arena + {offset})"

    def seen(self, name: str) -> str:
        """The same for what is only read."""
        offset = self.plan.places()[name][0]
        kind = C_TYPES[self.graph.tensors[name].dtype]
        return f"(const {kind} *)(nn_arena + {offset})"

    def constant(self, name: str, values: Array) -> str:
        """A constant's C name; written once."""
        if name not in self.names:
            c_name = identifier(name)
            while c_name in self.names.values():
                c_name += "_"
            self.names[name] = c_name
            about = " x ".join(map(str, values.shape))
            self.weights.append(array(c_name, values, about=about))
            self.constant_bytes += values.nbytes
        return self.names[name]

    def held(self, name: str | None) -> str:
        """A constant of the graph, `0` for none."""
        if name is None:
            return "0"
        values = self.graph.constants[name]
        if self.graph.tensors[name].dtype == "f32":
            values = values.astype(np.float32)
        return self.constant(name, values)

    def codes(self, name: str) -> Quantization:
        found = self.graph.tensors[name].quantization
        assert found is not None
        return found

    def count(self, kernel: str, macs: int) -> None:
        self.macs += macs
        self.spent[kernel] = self.spent.get(kernel, 0) + macs

    def call(self, text: str) -> None:
        self.calls.append(f"    {text};\n")

    def call_rows(self, op: Conv2d, name: str, *arguments: str, last: str = "") -> None:
        """Call a kernel over all rows of its result, from the last one where the plan has that over the end
        of what it reads."""
        rows, given = self.graph.tensors[op.y].shape[0], ", ".join(arguments)
        if not backwards(self.graph, self.plan, op):
            self.call(f"{name}({given}, 0, {rows}{last})")
            return
        self.calls.append(f"    for (int row = {rows}; row-- > 0;)\n")
        self.calls.append(f"        {name}({given}, row, row + 1{last});\n")

    def window(
        self,
        op: Op,
        x: str,
        y: str,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        pads: tuple[tuple[int, int], tuple[int, int]],
    ) -> str:
        """Declare a window; its name."""
        source, goal = self.graph.tensors[x].shape, self.graph.tensors[y].shape
        name = f"window{self.windows}"
        self.windows += 1
        height, width, channels = source if len(source) == 3 else (1, 1, source[-1])
        # a mean that was reshaped stands in one place
        out_height, out_width = goal[:2] if len(goal) == 3 else (1, 1)
        self.calls.append(
            WINDOW.format(
                name=name,
                height=height,
                width=width,
                channels=channels,
                kh=kernel[0],
                kw=kernel[1],
                sy=stride[0],
                sx=stride[1],
                top=pads[0][0],
                left=pads[1][0],
                oh=out_height,
                ow=out_width,
                outputs=goal[-1],
            )
        )
        return f"&{name}"

    def scales(self, op: Any, factors: Array, y: str, channels: int) -> str:
        """Declare how sums become codes of y; a pointer to it."""
        goal = self.codes(y)
        spread = np.broadcast_to(factors, (channels,))
        low, high = max(op.low, -128), min(op.high, 127)
        if self.graph.rounding == "fixed":
            m, shifts = multipliers(spread)
            one = self.constant(f"{y}.multipliers", m.astype(np.int32))
            two = self.constant(f"{y}.shifts", shifts.astype(np.int8))
            last = f"{one}, {two}"
        else:
            last = self.constant(f"{y}.factors", spread.astype(np.float32))
        name = f"scales{len(self.calls)}"
        zero = self.codes(op.x).zero
        self.calls.append(
            f"    static const nn_scales {name} = {{{zero}, {goal.zero}, {low:.0f}, {high:.0f}, {last}}};\n"
        )
        self.used.add("scales")
        return f"&{name}"
