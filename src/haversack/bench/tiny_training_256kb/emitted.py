"""The step as C: numbers to the bit, memory as planned, on this machine and on an emulated Cortex-M7.

The 99.84 KiB scheme of mcunet-5fps with a classifier of ten, quantization-aware scaling, `haversack embed
build --train`. RAM and flash are what the compiled object holds in its sections, code included (`size` of the
cross compiler; of this machine's where there is none): the arena, what learns, and four bytes that count.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.tiny_training_256kb._bench import MAIN, PUBLISHED, bench, model_file

KIB = 1024
CORE = "cortex-m7"
WATCHED = (
    "embed/train.py",
    "embed/_train_*.py",
    "embed/kernels/train_int8.c.j2",
    "embed/kernels/train_forward.c.j2",
    "embed/kernels/back_ops.c.j2",
    "embed/templates/train*.j2",
    "models/graph/*.py",
    "train/parameters/sparse.py",
    "train/precision/int8_qas.py",
    "bench/tiny_training_256kb/emitted.py",
)


def scheme() -> str:
    """The published scheme as the command line takes it."""
    found = PUBLISHED[MAIN]["100"][0]
    layers, ratios = ("-".join(f"{each:g}" for each in row) for row in (found.layers, found.ratios))
    return f"sparse:biases={found.biases},layers={layers},ratios={ratios}"


def sections(folder: Path) -> tuple[int, int, str]:
    """Bytes of RAM and of flash of `network.c`, and by which compiler."""
    from haversack.embed._host import run, tool
    from haversack.embed.targets import TARGETS

    goal = TARGETS[CORE]
    cross = goal.missing() is None
    compiler = goal.compiler if cross else tool("gcc", "gcc")
    flags = [flag for flag in goal.flags if flag.startswith("-m")] if cross else []
    run([compiler, "-std=c99", "-O2", *flags, "-c", folder / "network.c", "-o", folder / "network.o"])
    told = run([compiler.replace("gcc", "size"), folder / "network.o"]).splitlines()[1].split()
    text, data, bss = map(int, told[:3])
    return data + bss, text + data, compiler


@bench.measure(
    Row("emitted-c", "numbers after two emitted steps, and of a pass, that differ from the Python graph's",
        "numbers that differ", "quality", Bar("==", 0), judged="ours"),
    Row("emitted-core", "the same on an emulated Cortex-M7 (mps2-an500)", "numbers that differ", "quality",
        Bar("==", 0), judged="ours"),
    Row("emitted-arena", "bytes of the arena that the C touches, beside the plan", "bytes",
        "memory", Bar("==", 1)),
    Row("emitted-ram", "RAM of the compiled step: arena, what learns", "KiB", "memory", Bar("<=", 256),
        judged="ours", published="<256 KB of SRAM"),
    Row("emitted-planned", "the same beside the plan of models/graph", "KiB", "memory",
        Bar("in", (1.0, 1.001))),
    Row("emitted-code", "flash of the compiled step: weights, tables, code", "KiB", "bytes", Bar("<=", 1024),
        judged="ours", published="<1 MB"),
    seconds=40,
    watches=WATCHED,
)  # fmt: skip
def emitted(run: Run) -> Outcomes:
    from haversack.embed.targets import TARGETS
    from haversack.embed.train import Training, build_training_graph
    from haversack.embed.verify import verify
    from haversack.models.graph.mcu import load_mcu

    graph = load_mcu(model_file(MAIN))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        training = Training(scheme(), classes=10, seed=run.seed)
        made = build_training_graph(graph, folder, training, TARGETS[CORE], count=2).plan
        here, *_, core = verify(folder).runs
        ram, flash, compiler = sections(folder)
    planned = made.arena.nbytes + made.learned_nbytes
    found: dict[str, Any] = {
        "emitted-c": Outcome.single(here.differing, note=f"{here.outputs:,} numbers"),
        "emitted-arena": Outcome.single(here.arena_used, made.arena.nbytes, against="plan"),
        "emitted-ram": Outcome.single(ram / KIB, note=f"{ram:,} bytes by {compiler}"),
        "emitted-planned": Outcome.single(ram / KIB, planned / KIB, against="plan"),
        "emitted-code": Outcome.single(flash / KIB, note=f"by {compiler}"),
    }
    if core.skipped is not None:
        found["emitted-core"] = Unavailable(core.skipped)
    else:
        stack = f", {core.stack_used} bytes of stack"
        found["emitted-core"] = Outcome.single(core.differing, note=f"{core.outputs:,} numbers{stack}")
    return found
