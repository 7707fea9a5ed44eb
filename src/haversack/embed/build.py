"""From a network to a folder of C99 for a microcontroller: code, header, harness with golden outputs, report.

Papers: Toward smart composites (arXiv 2205.10940), whose nn4mc compiles Keras networks; On-Device Training
Under 256KB Memory (arXiv 2206.15472), whose engine plans memory at compile time. Both speak here through one
graph (models/graph): ONNX, Keras HDF5, LiteRT flatbuffers in floats or int8, MCUNet's int8 checkpoints, and
our own packs of one small file.

What comes out: `network.c` and `network.h` (a static arena from the plan, kernels of the operations that
occur and no others, `nn_forward`, `nn_reset`, `nn_store_state`), `main.c` with `golden.h` and a port (runs
golden inputs, compares, says what memory was touched), a Makefile, `report.json`, `arena.svg`. int8 outputs
are those of the Python graph to the bit, under either of its rounding rules. What nn4mc's published templates
get wrong (features bounded by time, a candidate that mixes indices, a state without its struct) is done by
Keras' definition.

A network that does not fit runs its first layers strip by strip where that helps (models/graph/strips.py);
one that fits neither way is refused before anything is written: the smallest arena and flash that would do,
and which tensors stand at the peak. Kernels: direct loops, or products of matrices with the SIMD that the
compiler has (_variants.py); `auto` takes them where they cost little memory. Limits: one input, one output.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core import _files
from haversack.core.errors import UserError
from haversack.embed._c import array, literal, rendered
from haversack.embed._emission import Emission
from haversack.embed._graph_c import emission, network_text
from haversack.embed._strips import Strips, fitted
from haversack.embed._variants import chosen, planned
from haversack.embed.instructions import predicted
from haversack.embed.targets import TARGETS, Target, target
from haversack.embed.tune import Tuned, tune
from haversack.formats.keras_h5 import is_keras
from haversack.formats.small_pack import is_small_pack
from haversack.models.graph import Graph, Machine, load_mcu
from haversack.models.graph.keras import load_keras
from haversack.models.graph.litert import load_litert
from haversack.models.graph.onnx import load_onnx
from haversack.models.graph.packs import load_small_pack
from haversack.models.graph.plan import Arena
from haversack.models.graph.series import Runner

Array = npt.NDArray[Any]
SYSTEM = 18

GOLDEN, SEED = 4, 18
TOLERANCE = 1e-5
PAINT = {"host": 1 << 16}
COLOURS = ("#c4713b", "#2b6ca8", "#4d8b3a", "#8a5aa8", "#b8892b", "#3a8b8b")


def load_graph(path: str | Path) -> Graph:
    """The graph in a file: .onnx, .h5 and .hdf5 (Keras), .tflite (LiteRT), .pkl (MCUNet), and
    packs of one small file.

    Raises UserError for another kind of file, for what is not supported, and for weights that are not finite.
    """
    place = Path(path)
    if not place.is_file():
        raise UserError(f"{place} is not a file.", field="model", given=str(place))
    if place.suffix == ".tflite":
        graph = load_litert(place)
    elif place.suffix == ".pkl":
        graph = load_mcu(place)
    elif place.suffix == ".onnx":
        graph = load_onnx(place)
    elif is_small_pack(place):
        graph = load_small_pack(place)
    elif place.suffix in (".h5", ".hdf5", ".keras") or is_keras(place):
        graph = load_keras(place)
    else:
        raise UserError(
            f"{place} is of no kind that is read (.onnx, .h5 and .hdf5 of Keras, .tflite of LiteRT, .pkl of "
            "MCUNet, packs of one small file).",
            field="model",
            given=place.suffix,
        )
    for name, values in graph.constants.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"{name} of {place} holds numbers that are not finite; train it again.",
                field="model",
                given=name,
            )
    return graph


@dataclass(frozen=True)
class Built:
    """What `build` wrote and what it counted."""

    graph: Graph
    target: Target
    made: Emission
    files: tuple[str, ...]
    folder: Path
    tuned: Tuned | None = None
    strips: Strips | None = None

    @property
    def cycles(self) -> int:
        """Predicted for one pass, by the model of targets.py."""
        instructions = predicted(self.made, self.target)
        return (
            self.made.macs
            if instructions is None
            else round(instructions * self.target.cycles_per_instruction)
        )

    def record(self) -> dict[str, Any]:
        """As `--json` prints it and `report.json` holds it."""
        plan = self.made.plan
        return {
            "model": self.graph.name,
            "target": self.target.name,
            "kind": "int8" if self.made.integer else "float",
            "arena_bytes": plan.nbytes,
            "arena_bound_bytes": plan.bound,
            "state_bytes": state_nbytes(self.made),
            "constant_bytes": self.made.constant_bytes,
            "flash_bytes": None,
            "macs": self.made.macs,
            "instructions": predicted(self.made, self.target),
            "cycles": self.cycles,
            "kernels": dict(self.made.choices),
            "threads": self.made.threads,
            "strips": None if self.strips is None else asdict(self.strips),
            "tuned_us": None if self.tuned is None else self.tuned.microseconds,
            "arena": [
                {
                    "tensors": list(life.names),
                    "offset": offset,
                    "nbytes": life.nbytes,
                    "first": life.first,
                    "last": life.last,
                }
                for life, offset in zip(plan.lives, plan.offsets, strict=True)
            ],
            "tensors": {name: self.graph.tensors[name].nbytes for name in self.graph.constants},
            "files": list(self.files),
            "output": str(self.folder),
        }


def state_nbytes(made: Emission) -> int:
    """Bytes of hidden states and of what recurrent layers work in, outside of the arena."""
    return 4 * (2 * made.state + made.scratch)


def refuse_too_large(graph: Graph, made: Emission, ram_kib: float | None, storage_kib: float | None) -> None:
    """Raises UserError when the arena and states, or the constants, do not fit; names the peak's tensors."""
    need, store = made.plan.nbytes + state_nbytes(made), made.constant_bytes
    said = []
    if ram_kib is not None and need > ram_kib * 1024:
        lives = made.plan.lives
        fullest = max(
            {life.first for life in lives},
            key=lambda number: sum(life.nbytes for life in lives if life.first <= number <= life.last),
        )
        peak = [life for life in lives if life.first <= fullest <= life.last]
        names = ", ".join(f"{life.names[0]} ({life.nbytes:,} bytes)" for life in peak)
        said.append(
            f"{need / 1024:.2f} KiB of RAM (--ram-kib {ram_kib:g}); at the peak, operation {fullest}, "
            f"live {names}"
        )
    if storage_kib is not None and store > storage_kib * 1024:
        largest = max(graph.constants, key=lambda name: graph.tensors[name].nbytes)
        said.append(
            f"{store / 1024:.2f} KiB of storage for constants alone (--storage-kib {storage_kib:g}), most "
            f"of it "
            f"{largest} ({graph.tensors[largest].nbytes:,} bytes)"
        )
    if said:
        field = "ram_kib" if ram_kib is not None and need > ram_kib * 1024 else "storage_kib"
        raise UserError(
            f"{graph.name} needs {'; and '.join(said)}.",
            field=field,
            given=ram_kib if field == "ram_kib" else storage_kib,
            nearest=-(-(need if field == "ram_kib" else store) // 1024),
        )


def golden(graph: Graph, count: int, seed: int) -> tuple[Array, Array]:
    """Inputs drawn by `seed` and what the graph makes of them one after the other, states carried: codes
    exactly, floats from 64-bit arithmetic."""
    rng = np.random.default_rng(seed)
    source = graph.tensors[graph.inputs[0]]
    if source.dtype == "int8":
        x = rng.integers(-128, 128, (count, *source.shape)).astype(np.int8)
        return x, np.asarray(Machine(graph).run({graph.inputs[0]: x})[graph.outputs[0]])
    x = rng.uniform(-1, 1, (count, *source.shape)).astype(np.float32)
    runner = Runner(graph)
    return x, np.concatenate([runner.run(x[at : at + 1].astype(np.float64)) for at in range(count)])


def build(
    model: str | Path,
    folder: Path,
    *,
    target_name: str = "host",
    ram_kib: float | None = None,
    storage_kib: float | None = None,
    count: int = GOLDEN,
    seed: int = SEED,
    kernels: str = "auto",
    threads: int = 1,
) -> Built:
    """Compile a network into `folder`. `kernels`: auto, direct or fast (_variants.py), or tune
    (tune.py); `threads` of the host. Raises UserError where it cannot be, or does not fit."""
    return build_graph(
        load_graph(model),
        folder,
        target(target_name),
        ram_kib=ram_kib,
        storage_kib=storage_kib,
        count=count,
        seed=seed,
        kernels=kernels,
        threads=threads,
    )


def build_graph(
    graph: Graph,
    folder: Path,
    goal: Target = TARGETS["host"],
    *,
    ram_kib: float | None = None,
    storage_kib: float | None = None,
    count: int = GOLDEN,
    seed: int = SEED,
    kernels: str = "auto",
    threads: int = 1,
) -> Built:
    """The same for a graph at hand."""
    if threads != 1 and goal.name != "host":
        raise UserError(
            f"threads={threads} is not supported for {goal.name}, which has one core; use --threads 1.",
            field="threads",
            given=threads,
            nearest=1,
        )
    room = None if ram_kib is None else ram_kib * 1024
    whole = graph
    tuned: Tuned | None = None
    strips: Strips | None = None
    if room is not None and planned(graph, {}).nbytes > room and (found := fitted(graph, room)):
        graph, strips = found
    if kernels == "tune":
        tuned = tune(graph, threads, room)
        choices, plan = tuned.choices, tuned.plan
    else:
        choices, plan = chosen(graph, kernels, threads, room)
    made = emission(graph, plan, choices, threads)
    refuse_too_large(graph, made, ram_kib, storage_kib)
    title = f"{graph.name}: {'int8' if made.integer else 'float'} network for {goal.name}"
    header, source = network_text(made, title)
    inputs, outputs = golden(whole, count, seed)
    outputs = outputs if outputs.dtype == np.int8 else outputs.astype(np.float32)
    texts = {
        "network.h": header,
        "network.c": source,
        "golden.h": rendered(
            "golden.h.j2",
            seed=seed,
            count=count,
            inputs=array("golden_inputs", inputs),
            outputs=array("golden_outputs", outputs),
        ),
        "main.c": rendered(
            "main.c.j2",
            paint=PAINT.get(goal.name, 1 << 13),
            exact=outputs.dtype == np.int8,
            tolerance=literal(TOLERANCE * max(1.0, float(np.abs(outputs.astype(float)).max())), "float32"),
        ),
        "port.h": rendered("port.h.j2"),
        "port_host.c": rendered("port_host.c.j2"),
        "Makefile": rendered(
            "Makefile.j2",
            target=goal.name,
            compiler=goal.compiler,
            flags=" ".join([*goal.flags, *([f"-T {goal.script}"] if goal.script else [])]),
            port=goal.port,
            emulator=" ".join(goal.command()),
            threads=threads,
        ),
        "arena.svg": arena_svg(made.plan, len(graph.ops), title),
    }
    if goal.script:
        texts[goal.port] = rendered(f"{goal.port}.j2")
        texts[goal.script] = rendered(f"{goal.script}.j2", board=goal.board)
    with _files.explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    done = Built(graph, goal, made, (*texts, "report.json"), folder, tuned, strips)
    texts["report.json"] = json.dumps(done.record(), indent=1) + "\n"
    for name, text in texts.items():
        _files.write_atomically(folder / name, text.encode())
    return done


def arena_svg(plan: Arena, operations: int, title: str) -> str:
    """The arena as a picture: bytes downwards, operations to the right, a box for each piece of memory."""
    left, top, across, down = 70, 40, 800, 400
    total = max(plan.nbytes, 1)
    boxes = []
    for at, (life, offset) in enumerate(zip(plan.lives, plan.offsets, strict=True)):
        high = down * life.nbytes / total
        wide = across * (life.last - life.first + 1) / max(operations, 1)
        boxes.append(
            {
                "x": round(left + across * life.first / max(operations, 1), 1),
                "y": round(top + down * offset / total, 1),
                "w": round(wide, 1),
                "h": round(max(high, 0.5), 1),
                "colour": COLOURS[at % len(COLOURS)],
                "title": f"{', '.join(life.names)}: {life.nbytes:,} bytes".replace("&", "and").replace(
                    "<", "("
                ),
                "text": life.names[0].replace("&", "and").replace("<", "(")
                if high > 16 and wide > 7 * len(life.names[0])
                else "",
            }
        )
    ticks = [(top + down * share, f"{total * share:,.0f}") for share in (0, 0.25, 0.5, 0.75, 1)]
    return rendered(
        "arena.svg.j2",
        width=900,
        height=480,
        left=left,
        top=top,
        across=across,
        down=down,
        title=f"{title}: arena of {plan.nbytes:,} bytes",
        boxes=boxes,
        ticks=ticks,
    )
