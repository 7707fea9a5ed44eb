"""The emitted C beside the numpy graph, number by number; memory in 16 bits beside 32."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.reduced_precision_odl._bench import bench, need_gcc, resnet8, small_cnn
from haversack.embed.targets import TARGETS
from haversack.embed.train import Kernels, Training, build_training_graph, planned

PRECISIONS = ("fp32", "fp16", "bf16")
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
