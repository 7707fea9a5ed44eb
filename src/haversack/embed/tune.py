"""Measures every kernel of every layer on this machine and keeps the fastest.

Papers: Reduced Precision Floating-Point Optimization (arXiv 2305.19167), whose autotuner tries kernels layer
by layer; here for inference.
What is here: the network is emitted once with the plain kernels and once with the fast ones, a mark between
its operations reads the clock, and both programs run by turns; of each layer the least time of all passes
counts. Where two layers' patches do not fit the memory, `auto` has decided before and the fast kernel is no
candidate.
Cost: two compilations and some seconds. Limits: what is fastest here need not be on another core; the report
says where it was measured. Timings of layers below a microsecond are the clock's own.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from haversack.embed._c import rendered
from haversack.embed._graph_c import emission, network_text
from haversack.embed._host import compile_with, run, tool
from haversack.embed._variants import chosen, fast, kernels_of, planned
from haversack.models.graph._ir import Graph
from haversack.models.graph.plan import Arena

SYSTEM = 11
PASSES, TURNS = 20, 5


@dataclass(frozen=True)
class Tuned:
    """`choices` and the arena that they need; microseconds of each kernel of each layer that has several."""

    choices: dict[str, str]
    plan: Arena
    microseconds: dict[str, dict[str, float]]


def tune(graph: Graph, threads: int = 1, ram_nbytes: float | None = None) -> Tuned:
    """The fastest kernels within `ram_nbytes`. Raises UserError without gcc, HaversackError where a build
    breaks."""
    allowed = fast(graph) if ram_nbytes is None else chosen(graph, "auto", threads, ram_nbytes)[0]
    with tempfile.TemporaryDirectory() as name:
        programs = {
            "direct": _program(graph, {}, threads, Path(name) / "direct"),
            "fast": _program(graph, allowed, threads, Path(name) / "fast"),
        }
        taken: dict[str, list[list[float]]] = {key: [] for key in programs}
        for _ in range(TURNS):
            for key, program in programs.items():
                taken[key].append([float(each) for each in run([program]).split()])
    least = {key: [min(column) for column in zip(*rows, strict=True)] for key, rows in taken.items()}
    times: dict[str, dict[str, float]] = {}
    for number, op in enumerate(graph.ops):
        kernels, layer = kernels_of(op), op.writes[0]
        if layer in allowed:
            pair = (least["direct"][number], least["fast"][number])
            times[layer] = dict(zip(kernels, pair, strict=True))
    choices = {
        layer: kernel for layer, kernel in allowed.items() if times[layer][kernel] < times[layer]["direct"]
    }
    return Tuned(choices, planned(graph, choices, threads), times)


def marked_texts(graph: Graph, choices: Mapping[str, str], threads: int = 1) -> tuple[str, str]:
    """`network.h` and `network.c` with a call of `nn_mark` before every operation and behind the last."""
    made = emission(graph, planned(graph, choices, threads), choices, threads)
    header, source = network_text(made, graph.name)
    body = source.index("void nn_forward(")
    marked, count = re.subn(r"^    /\* \w+: .* \*/\n", "    nn_mark();\n", source[body:], flags=re.MULTILINE)
    assert count == len(graph.ops)
    marked = re.sub(r"^    memcpy\(output,", "    nn_mark();\n    memcpy(output,", marked, flags=re.MULTILINE)
    declared = source[:body].replace(
        '#include "network.h"\n', '#include "network.h"\n\nvoid nn_mark(void);\n', 1
    )
    return header, declared + marked


def _program(graph: Graph, choices: Mapping[str, str], threads: int, folder: Path) -> Path:
    """A program that prints the least microseconds of every operation over its passes."""
    folder.mkdir()
    header, source = marked_texts(graph, choices, threads)
    (folder / "network.h").write_text(header, encoding="utf-8")
    (folder / "network.c").write_text(source, encoding="utf-8")
    text = rendered("profile.c.j2", operations=len(graph.ops), passes=PASSES)
    (folder / "profile.c").write_text(text, encoding="utf-8")
    program = folder / "profile"
    command = [tool("gcc", "gcc"), "-std=gnu99", "-O2", "-ffp-contract=off", "-pthread"]
    return compile_with(command, folder, ["network.c", "profile.c"], program)
