"""The emitted C beside the numpy graph, number by number; memory in 16 bits beside 32."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from haversack.bench._compiler import need_gcc
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.reduced_precision_odl._bench import bench, resnet8, small_cnn
from haversack.embed.targets import TARGETS
from haversack.embed.train import Kernels, Recipe, Training, build_training_graph, planned

PRECISIONS = ("fp32", "fp16", "bf16")
TILES = (Kernels(16, 4, 16, 16), Kernels(32, 2, 32, 32))
"""Each arm takes the one that is faster for it."""
CORES = tuple(name for name in TARGETS if name != "host")


@bench.measure(
    *(
        Row(
            f"bits-{core}-{precision}",
            f"numbers after three steps that differ from numpy's, {precision}, {core}",
            "numbers that differ",
            "quality",
            Bar("==", 0),
            judged="ours",
            quick=core == "host",
        )
        for core in ("host", *CORES)
        for precision in PRECISIONS
    ),
    seconds=100,
    quick_seconds=15,
)
def bits(run: Run) -> Outcomes:
    from haversack.embed.verify import verify

    need_gcc()
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        for core in ("host",) if run.quick else CORES:
            run.say(f"{precision}, {core}")
            with tempfile.TemporaryDirectory() as place:
                training = Training("all", precision=precision, kernels=Kernels(4, 2), seed=run.seed)
                build_training_graph(small_cnn(), Path(place), training, TARGETS[core], count=3)
                runs = verify(Path(place)).runs
            for name, done in (("host", runs[0]), (core, runs[-1])):
                row = f"bits-{name}-{precision}"
                if done.skipped is not None:
                    found[row] = Unavailable(done.skipped)
                    continue
                note = f"{done.outputs:,} numbers, {done.where}"
                found[row] = Outcome.single(done.differing, note=note)
    return found


@bench.measure(
    Row("examples-bits", "numbers after two steps of four examples each that differ from numpy's, f16",
        "numbers that differ", "quality", Bar("==", 0), judged="ours"),
    Row("vector-step", "instructions of a step on RISC-V, vectors of 16-bit floats beside 32-bit floats",
        "instructions", "quality", Bar("<=", 1 / 1.72), published="up to 1.72x (cycles, pairs of Xfvec)"),
    Row("vector-halves", "the same beside 16-bit floats one at a time (Zfh)", "instructions", "quality",
        Bar("<=", 1.0)),
    Row("vector-none", "the same beside 16-bit floats made of 32-bit ones", "instructions", "quality",
        Bar("<=", 1.0)),
    seconds=90,
)  # fmt: skip
def vectors(run: Run) -> Outcomes:
    """Counted by QEMU (-icount): instructions, of which a vector is one."""
    from haversack.embed._train_verify import verify_training
    from haversack.embed.verify import read_report

    need_gcc()

    def step(precision: str, core: str, kernels: Kernels, examples: int = 1) -> Any:
        run.say(f"{precision}, {core}")
        with tempfile.TemporaryDirectory() as place:
            recipe = Recipe(examples=examples)
            training = Training("all", precision=precision, kernels=kernels, recipe=recipe, seed=run.seed)
            build_training_graph(small_cnn(), Path(place), training, TARGETS[core], count=2)
            return verify_training(Path(place), read_report(Path(place)))[-1]

    found: dict[str, Any] = {"examples-bits": Outcome.single(step("fp16", "host", TILES[0], 4).differing)}
    arms = (
        ("vector-step", "fp32", "riscv32"),
        ("vector-halves", "fp16", "riscv32-zfh"),
        ("vector-none", "fp16", "riscv32"),
    )
    if (reason := TARGETS["riscv32-zvfh"].missing()) is not None:
        return found | {row: Unavailable(reason) for row, _, _ in arms}

    def least(precision: str, core: str) -> int:
        return min(int(step(precision, core, kernels).instructions) for kernels in TILES)

    ours = least("fp16", "riscv32-zvfh")
    for row, precision, core in arms:
        found[row] = Outcome.single(ours, least(precision, core), name="Zvfh", against=f"{precision}, {core}")
    return found


@bench.measure(
    Row("arena", "the arena of a ResNet8 step, f16 beside 32 bits", "bytes", "memory", Bar("<=", 0.55),
        published="half the bytes", quick=True),
    Row("learned", "what learns of ResNet8, f16 beside 32 bits", "bytes", "bytes",
        Bar("==", 0.5), quick=True),
    Row("patches", "what the convolutions' matrices add to the arena, beside the arena without", "bytes",
        "memory", Bar("<=", 1.2)),
    seconds=5,
    quick_seconds=3,
)  # fmt: skip
def memory(run: Run) -> Outcomes:
    graph = resnet8()
    plans = {
        precision: planned(graph, Training("all", precision=precision)) for precision in ("fp32", "fp16")
    }
    laid_out = planned(graph, Training("all", precision="fp32", kernels=Kernels(4, 4)))
    wide, narrow = plans["fp32"], plans["fp16"]
    arena = (narrow.arena_nbytes, wide.arena_nbytes)
    return {
        "arena": Outcome.single(*arena, name="f16", against="f32", note="one example"),
        "learned": Outcome.single(narrow.learned_nbytes, wide.learned_nbytes, name="f16", against="f32"),
        "patches": Outcome.single(laid_out.arena_nbytes, wide.arena_nbytes, name="4x4", against="direct"),
    }
