"""The model of instructions beside what emulated boards count, of a network that it was not fitted to."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.smart_composites_nn4mc._bench import bench
from haversack.bench.smart_composites_nn4mc._networks import tiny

CORES = ("cortex-m4f", "cortex-m7", "riscv32")


@bench.measure(
    *(
        Row(
            f"instructions-{core}-{kernels}",
            f"instructions of a pass of DS-CNN by the model, beside QEMU's count, {kernels} kernels, {core}",
            "instructions",
            "quality",
            Bar("in", (0.8, 1.25)),
        )
        for core in CORES
        for kernels in ("direct", "fast")
    ),
    seconds=60,
)
def counts(run: Run) -> Outcomes:
    from haversack.embed.build import build
    from haversack.embed.instructions import predicted
    from haversack.embed.targets import TARGETS
    from haversack.embed.verify import golden_outputs, run_target

    found: dict[str, Any] = {}
    for core in CORES:
        goal = TARGETS[core]
        for kernels in ("direct", "fast"):
            row = f"instructions-{core}-{kernels}"
            if (reason := goal.missing()) is not None:
                found[row] = Unavailable(reason)
                continue
            run.say(f"{core}, {kernels}")
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                made = build(tiny("ds-cnn"), folder, target_name=core, kernels=kernels, count=1).made
                done = run_target(folder, goal, golden_outputs(folder))
            assert done.holds and done.instructions
            found[row] = Outcome.single(
                predicted(made, goal) or 0, done.instructions, name="the model", against="QEMU's count"
            )
    return found
