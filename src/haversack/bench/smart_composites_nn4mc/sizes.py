"""Memory and flash of networks beside what TinyEngine publishes of the same ones.

TinyEngine's figures are those of its README (measured on an STM32H743 at -Ofast; kB are taken as 1,000
bytes). The checkpoints here are the int8 networks of its tiny training, read at the size of picture of its
model zoo [recalled]: 96, 144 and 176 pixels. Memory is the planned arena, the input in it; flash is constants
and code of network.c from arm-none-eabi-gcc -Os for a Cortex-M7, without the C library and a board's own
code, which TinyEngine's figure holds. The checkpoints of MobileNetV2 and ProxylessNAS have no wide layer
before the classifier, as the model zoo's have: their peak memory is the same, their flash is not, and has no
bar. No figures of emlearn for these networks are known here.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.smart_composites_nn4mc._bench import bench
from haversack.bench.smart_composites_nn4mc._networks import shared

PUBLISHED = {
    "mcunet-5fps": (96, 96.0, 727.0),
    "mbv2-w0.35": (144, 295.0, 839.0),
    "proxyless-w0.3": (176, 259.0, 842.0),
}
"""Network -> pixels a side, kB of peak memory, kB of flash."""


@bench.measure(
    *(
        Row(
            f"{what}-{name}",
            f"{about} of {name} at {pixels} pixels, no larger than TinyEngine's published figure",
            "kB",
            kind,
            Bar("<=", 1.0) if what == "arena" or name == "mcunet-5fps" else None,
            published=figures[at],
        )
        for name, (pixels, *figures) in PUBLISHED.items()
        for at, what, about, kind in (
            (0, "arena", "peak memory", "memory"),
            (1, "flash", "constants and code", "bytes"),
        )
    ),
    Row("sizes-emlearn", "the same beside emlearn", "kB", "bytes"),
    seconds=60,
)
def peers(run: Run) -> Outcomes:
    from haversack.embed.build import build_graph
    from haversack.embed.controller_c import code_bytes
    from haversack.embed.targets import TARGETS
    from haversack.formats.mcu_pickle import read_mcu
    from haversack.models.graph.mcu import graph_of

    goal = TARGETS["cortex-m7"]
    missing = goal.missing()
    found: dict[str, Outcome | Unavailable] = {
        "sizes-emlearn": Unavailable("no figures of emlearn for these networks are known here")
    }
    for name, (pixels, memory, flash) in PUBLISHED.items():
        network = dataclasses.replace(read_mcu(shared("models", "mcu", f"{name}.pkl")), size=pixels)
        with tempfile.TemporaryDirectory() as place:
            made = build_graph(graph_of(network, name), Path(place), goal, count=1).made
            found[f"arena-{name}"] = Outcome(
                Side("ours, planned", (made.plan.nbytes / 1000,)), Side("TinyEngine, published", (memory,))
            )
            if missing is not None:
                found[f"flash-{name}"] = Unavailable(missing)
                continue
            machine = [flag for flag in goal.flags if flag.startswith("-m")]
            text, _ = code_bytes(Path(place) / "network.c", "-Os", *machine, compiler=goal.compiler)
        found[f"flash-{name}"] = Outcome(
            Side("ours, -Os", (text / 1000,)),
            Side("TinyEngine, published", (flash,)),
            f"{text - made.constant_bytes:,} bytes of it are code",
        )
    return found
