"""From a network to C99 that learns on the microcontroller: forward, back and update in one call.

Papers: Nadalini, Rusci, Benini and Conti, "Reduced Precision Floating-Point Optimization for Deep Neural
Network On-Device Learning on MicroControllers" (arXiv 2305.19167, 2023), whose steps (products of matrices
for the way forward, gradients of weights and gradients of inputs) and 16-bit floats are here; Lin, Zhu, Chen,
Wang, Gan and Han, "On-Device Training Under 256KB Memory" (arXiv 2206.15472, 2022), whose sparse schemes,
quantization-aware scaling and compile-time plan are here.

What comes out: `network.c` and `network.h` (`nn_train_reset`, `nn_train_step`, `nn_forward`, what learns as
one block of bytes to save), a harness that takes golden steps and compares every number that learned, a
Makefile, `report.json`, `arena.svg`. One example a step, or several, one after the other in the same
arena, whose gradients are summed in 32 bits and whose mean updates at the last one; plain SGD, momentum and
weight decay where asked. What learns lies in RAM, of a sparse scheme only the channels that change; the rest
stays in flash, and the way forward adds the difference. Every sum has one order, in C and in numpy
(_train_twin.py), so that a float network too gives the same bits on every machine. 16-bit floats are added up
in 16 bits, even and odd terms in a lane each, as pairs in a register give it, or in 32 bits (`sums`); a core
without them computes them exactly from 32-bit floats (halves.py), a RISC-V core with Zfh or Zvfh uses its
own, one at a time or as vectors.
What we changed: updates are taken where their gradient is ready, so none is stored; a gradient that is not
finite leaves its number alone and is counted, so that a too large loss scale is seen; cross-entropy is in 32
bits, its exponential from products alone. Batch normalisation is folded before training.
Limits: Pad in 16 bits; recurrent layers and maxima only below what learns have no kernel.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core import _files
from haversack.core.errors import UserError
from haversack.embed._c import array, literal, rendered
from haversack.embed._train_emission import (
    TYPES,
    WIDTHS,
    Kernels,
    TrainEmission,
    carried,
    training_kernels,
    training_structs,
)
from haversack.embed._train_plan import OF_CODES, Training, TrainPlan, planned, refuse_beyond
from haversack.embed._train_rules import calls
from haversack.embed._train_twin import Recipe, Twin
from haversack.embed.build import PAINT, arena_svg, load_graph
from haversack.embed.targets import TARGETS, Target, target
from haversack.models.graph._gradients import LABEL
from haversack.models.graph._ir import Graph

__all__ = [
    "TARGETS",
    "Kernels",
    "Recipe",
    "TrainBuilt",
    "TrainPlan",
    "Training",
    "Twin",
    "build_training",
    "build_training_graph",
    "planned",
]

Array = npt.NDArray[Any]
SYSTEM = 11

LOSS_TOLERANCE = 1e-5
STEPS = 2


@dataclass(frozen=True)
class TrainBuilt:
    """What `build_training` wrote and what it counted."""

    plan: TrainPlan
    target: Target
    macs: dict[str, int]
    constant_bytes: int
    files: tuple[str, ...]
    folder: Path

    def record(self) -> dict[str, Any]:
        """As `--json` prints it and `report.json` holds it."""
        made = self.plan
        products = sum(self.macs.values()) * made.training.recipe.examples
        each = self.target.product_cycles("int8-float" if made.kind in OF_CODES else "float")
        found = made.arena
        return {
            "model": made.name,
            "target": self.target.name,
            "kind": made.kind,
            "training": {
                "scheme": made.training.scheme,
                "loss": made.training.loss,
                "sums": made.sums,
                "kernels": made.training.kernels.label,
                "momentum": made.training.recipe.momentum,
                "examples": made.training.recipe.examples,
                "learned_numbers": sum(place.size for place in made.learned.values()),
                "learned_bytes": made.learned_nbytes,
                "carried_bytes": made.carried_nbytes,
                "ram_bytes": made.ram_nbytes,
                "learned": {
                    name: {
                        "dtype": made.graph.tensors[name].dtype,
                        "offset": place.offset,
                        "shape": list(place.shape),
                        "channels": None if place.channels is None else list(place.channels),
                    }
                    for name, place in made.learned.items()
                },
                "forward_macs": self.macs["forward"],
                "backward_macs": self.macs["backward"],
            },
            "arena_bytes": made.arena_nbytes,
            "arena_bound_bytes": found.bound,
            "state_bytes": made.learned_nbytes + made.carried_nbytes,
            "constant_bytes": self.constant_bytes,
            "flash_bytes": None,
            "macs": products,
            "instructions": None,
            "cycles": round(products * each),
            "kernels": {},
            "threads": 1,
            "strips": None,
            "tuned_us": None,
            "arena": [
                {
                    "tensors": list(life.names),
                    "offset": offset,
                    "nbytes": life.nbytes,
                    "first": life.first,
                    "last": life.last,
                }
                for life, offset in zip(found.lives, found.offsets, strict=True)
            ],
            "tensors": {name: made.graph.tensors[name].nbytes for name in made.graph.constants},
            "files": list(self.files),
            "output": str(self.folder),
        }


def golden_examples(made: TrainPlan, count: int, seed: int) -> tuple[Array, Array]:
    """Inputs drawn by `seed`, and a class or a target for each."""
    rng = np.random.default_rng(seed)
    (name,) = made.pass_graph.inputs
    source = made.graph.tensors[name]
    outputs = made.pass_graph.tensors[made.pass_graph.outputs[0]].size
    if source.dtype == "int8":
        inputs: Array = rng.integers(-128, 128, (count, *source.shape)).astype(np.int8)
    else:
        inputs = rng.uniform(-1, 1, (count, *source.shape)).astype(np.float32)
    if made.training.loss == "cross-entropy":
        return inputs, rng.integers(0, outputs, count).astype(np.int32)
    return inputs, rng.uniform(-1, 1, (count, outputs)).astype(np.float32)


def checksum(block: bytes) -> int:
    """FNV-1a, 32 bits."""
    found = 2166136261
    for byte in block:
        found = ((found ^ byte) * 16777619) & 0xFFFFFFFF
    return found


def network_texts(made: TrainPlan, title: str) -> tuple[str, str, TrainEmission, dict[str, int]]:
    """`network.h`, `network.c`, the emission and its products forward and back."""
    shared: dict[str, Any] = {
        "learned": made.learned,
        "kernels": made.training.kernels,
        "recipe": made.training.recipe,
        "sums": made.sums,
    }
    integer = made.kind in OF_CODES
    step = TrainEmission(made.graph, made.arena, integer, **shared)
    source, square = made.pass_graph.inputs[0], made.training.loss != "cross-entropy"
    step.call(f"memcpy({step.at(source)}, input, sizeof(nn_input) * NN_INPUTS)")
    step.call(f"memcpy({step.at(LABEL)}, target, sizeof(nn_target) * NN_TARGETS)")
    calls(step)
    one = replace(step, graph=made.pass_graph, plan=made.pass_arena, calls=[], macs=0)
    one.call(f"memcpy({one.at(source)}, input, sizeof(nn_input) * NN_INPUTS)")
    calls(one)
    goal = made.pass_graph.outputs[0]
    outputs = made.pass_graph.tensors[goal]
    if outputs.dtype == "f32":
        one.call(f"memcpy(output, {one.seen(goal)}, sizeof(nn_output) * NN_OUTPUTS)")
    else:
        one.call(f"{one.use(outputs.dtype, 'widened')}({one.seen(goal)}, output, NN_OUTPUTS)")
    reset = resets(step)
    kernels = training_kernels(step)
    tensor = made.graph.tensors[source]
    codes = tensor.quantization
    recipe = made.training.recipe
    names = carried(recipe)
    constants = step.constant_bytes + one.constant_bytes - step_shared(step, one)
    numbers: dict[str, Any] = {
        "arena": made.arena_nbytes,
        "learned": made.learned_nbytes,
    }
    header = rendered(
        "train.h.j2",
        title=title,
        in_type=TYPES[tensor.dtype],
        in_about="floats" if codes is None else f"code q stands for (q - ({codes.zero})) * {codes.scale:.9g}",
        inputs=tensor.size,
        outputs=outputs.size,
        in_shape=" x ".join(map(str, tensor.shape)),
        out_shape=" x ".join(map(str, outputs.shape)),
        square=square,
        examples=recipe.examples,
        **numbers,
    )
    macs = {"forward": one.macs, "backward": step.macs - one.macs}
    text = rendered(
        "train.c.j2",
        title=title,
        macs=f"{step.macs * recipe.examples:,}",
        forward_macs=f"{one.macs * recipe.examples:,}",
        constants=f"{constants:,}",
        arena=f"{made.arena_nbytes:,}",
        learned=f"{made.learned_nbytes:,}",
        extra=f", {made.carried_nbytes:,} of what steps carry along" if names else "",
        carried=names,
        examples=recipe.examples,
        numbers=sum(place.size for place in made.learned.values()),
        windows=one.windows,
        structs=training_structs(step),
        weights="\n".join(step.weights),
        kernels=kernels,
        square=square,
        reset=reset,
        step="".join(step.calls),
        calls="".join(one.calls),
    )
    step.constant_bytes = constants
    return header, text, step, macs


def step_shared(step: TrainEmission, one: TrainEmission) -> int:
    """Bytes that both counted: `one` began with what `step` had."""
    return min(step.constant_bytes, one.constant_bytes)


def resets(made: TrainEmission) -> str:
    """Calls that copy what learns from flash."""
    start = len(made.calls)
    for name, place in made.learned.items():
        tensor = made.graph.tensors[name]
        if place.channels is None:
            nbytes = place.size * WIDTHS[tensor.dtype]
            made.call(f"memcpy(nn_learned.bytes + {place.offset}, {made.flash(name)}, {nbytes})")
        else:
            table = made.channel_table(place.channels, name)
            kept = made.use_back(tensor.dtype, "kept")
            places = math.prod(tensor.shape[:-1])
            counts = f"{places}, {tensor.shape[-1]}, {table}, {len(place.channels)}"
            made.call(f"{kept}({made.flash(name)}, {made.ram(name)}, {counts})")
        if made.recipe.master:
            narrow = tensor.dtype in ("f16", "bf16")
            if narrow:
                wide = made.use(tensor.dtype, "widened")
                made.call(f"{wide}({made.ram(name)}, nn_finer + {place.first}, {place.size})")
            else:
                made.call(f"memcpy(nn_finer + {place.first}, {made.ram(name)}, {4 * place.size})")
    if made.recipe.momentum:
        made.call("memset(nn_velocity, 0, sizeof nn_velocity)")
    found = "".join(made.calls[start:])
    del made.calls[start:]
    return found


def build_training(
    model: str | Path,
    folder: Path,
    training: Training | None = None,
    *,
    target_name: str = "host",
    ram_kib: float | None = None,
    storage_kib: float | None = None,
    count: int = STEPS,
) -> TrainBuilt:
    """Compile a network that learns into `folder`. Raises UserError where it cannot be, or does not fit."""
    goal = target(target_name)
    return build_training_graph(
        load_graph(model), folder, training, goal, ram_kib=ram_kib, storage_kib=storage_kib, count=count
    )


def build_training_graph(
    graph: Graph,
    folder: Path,
    training: Training | None = None,
    goal: Target = TARGETS["host"],
    *,
    ram_kib: float | None = None,
    storage_kib: float | None = None,
    count: int = STEPS,
) -> TrainBuilt:
    """The same for a graph at hand."""
    training = training or Training()
    made = planned(graph, training)
    title = f"{graph.name}: {made.kind} network that learns ({training.scheme}) for {goal.name}"
    refuse_beyond(made, graph, ram_kib, None, 0)
    header, source, emission, macs = network_texts(made, title)
    refuse_beyond(made, graph, None, storage_kib, emission.constant_bytes)
    texts = {
        "network.h": header,
        "network.c": source,
        **golden_texts(made, count, training),
        "port.h": rendered("port.h.j2"),
        "port_host.c": rendered("port_host.c.j2"),
        "Makefile": rendered(
            "Makefile.j2",
            target=goal.name,
            compiler=goal.compiler,
            flags=" ".join([*goal.flags, *([f"-T {goal.script}"] if goal.script else [])]),
            port=goal.port,
            emulator=" ".join(goal.command()),
            threads=1,
        ),
        "arena.svg": arena_svg(made.arena, len(made.graph.ops), title),
    }
    texts["main.c"] = rendered(
        "train_main.c.j2", paint=PAINT.get(goal.name, 1 << 13), tolerance=texts.pop("tolerance")
    )
    if goal.script:
        texts[goal.port] = rendered(f"{goal.port}.j2")
        texts[goal.script] = rendered(f"{goal.script}.j2", board=goal.board)
    with _files.explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    done = TrainBuilt(
        made, goal, macs, emission.constant_bytes, (*texts, "golden.bin", "report.json"), folder
    )
    texts["report.json"] = json.dumps(done.record(), indent=1) + "\n"
    block = bytes.fromhex(texts.pop("golden.bin"))
    for name, text in texts.items():
        _files.write_atomically(folder / name, text.encode())
    _files.write_atomically(folder / "golden.bin", block)
    return done


def golden_texts(made: TrainPlan, count: int, training: Training) -> dict[str, str]:
    """`golden.h`; what learns after each step, in hexadecimal; how far the loss may be off."""
    each = made.training.recipe.examples
    inputs, targets = golden_examples(made, count * each, training.seed)
    twin = made.twin()
    (name,) = made.pass_graph.inputs
    losses, blocks = [], []
    for first in range(0, len(inputs), each):
        rows = slice(first, first + each)
        losses.append(twin.step({name: inputs[rows], LABEL: targets[rows]}, training.rate))
        blocks.append(made.block(twin.parameters))
    if not np.isfinite(losses).all():
        raise UserError(
            f"the golden steps of {made.name} are not finite (loss {losses[-1]}); lower --rate, or use "
            "bf16 or fp32.",
            field="rate",
            given=training.rate,
        )
    largest = max(1.0, float(np.abs(losses).max()))
    text = rendered(
        "train_golden.h.j2",
        seed=training.seed,
        count=count,
        examples=each,
        rate=literal(training.rate, "float32"),
        inputs=array("golden_inputs", inputs),
        targets=array("golden_targets", targets),
        losses=array("golden_losses", np.array(losses, np.float32)),
        checksums=", ".join(f"{checksum(block)}u" for block in blocks),
        outputs=array("golden_outputs", made.outputs(twin, inputs)),
    )
    return {
        "golden.h": text,
        "golden.bin": b"".join(blocks).hex(),
        "tolerance": literal(LOSS_TOLERANCE * largest, "float32"),
    }
