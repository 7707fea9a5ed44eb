"""The MLPerf Tiny networks as C beside LiteRT's reference kernels: codes to the bit, floats closely.

1,000 inputs each: half of them photographs or features of recorded sounds, half drawn over the whole range.
The photographs are CIFAR-10's (enlarged for visual wake words), the sounds spoken digits; they are not the
benchmark's own inputs, which are not here, and go through its own front ends. LiteRT runs with the op
resolver BUILTIN_REF and no delegate. Floats are held against the largest output of a row.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._compiler import need_gcc
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.peers import litert
from haversack.bench.smart_composites_nn4mc._bench import bench
from haversack.bench.smart_composites_nn4mc._networks import TINY, Compiled, rows_of, tiny

REAL, RANDOM = 500, 500
WATCHED = (
    "embed/_*.py",
    "embed/build.py",
    "embed/kernels/*.j2",
    "embed/templates/network.*.j2",
    "models/graph/_execute.py",
    "models/graph/_forward.py",
    "models/graph/_integer.py",
    "models/graph/_softmax.py",
    "models/graph/litert.py",
    "formats/litert.py",
    "bench/smart_composites_nn4mc/litert.py",
    "bench/smart_composites_nn4mc/_networks.py",
    "bench/peers/*litert*.py",
)
HYBRID = (
    "its float file holds 8-bit weights, for which LiteRT rounds activations; ours takes the floats they "
    "stand for"
)


def rows() -> list[Row]:
    found = []
    for name in TINY:
        found += [
            Row(
                f"litert-{name}",
                f"{name} in codes: outputs of the C that differ from LiteRT's reference kernels over "
                f"{REAL + RANDOM:,} inputs",
                "outputs",
                "quality",
                Bar("==", 0.0),
                judged="ours",
                quick=name == "ds-cnn",
            ),
            Row(
                f"python-{name}",
                f"{name} in codes: outputs of the C that differ from the Python graph over the same inputs",
                "outputs",
                "quality",
                Bar("==", 0.0),
                judged="ours",
                quick=name == "ds-cnn",
            ),
            Row(
                f"litert-{name}-float",
                f"{name} in floats: the largest difference of the C from LiteRT's reference kernels, as a "
                "share of the row's largest output (or of 1)",
                "share",
                "quality",
                None if name == "ds-cnn" else Bar("<=", 1e-5),
                judged="ours",
            ),
        ]
    return found


@bench.measure(*rows(), seconds=420, quick_seconds=20, watches=WATCHED)
def kernels(run: Run) -> Outcomes:
    from haversack.embed.build import build_graph, load_graph
    from haversack.models.graph import Machine

    need_gcc()
    peer = litert.python(run.say, build=not run.quick)
    found: dict[str, Outcome | Unavailable] = {}
    real, random = (20, 20) if run.quick else (REAL, RANDOM)
    for name in ("ds-cnn",) if run.quick else TINY:
        for floats in (False,) if run.quick else (False, True):
            path = tiny(name, floats=floats)
            graph = load_graph(path)
            x = rows_of(graph, name, real, random, run.seed)
            with tempfile.TemporaryDirectory() as place:
                build_graph(graph, Path(place), count=1)
                ours = Compiled(Path(place), graph).outputs(x)
            theirs = litert.outputs(peer, path, x)
            note = f"{real} real and {random} random inputs, {ours.size:,} outputs"
            if floats:
                found[f"litert-{name}-float"] = _share(
                    ours, theirs, note + (f"; {HYBRID}" if name == "ds-cnn" else "")
                )
                continue
            python = Machine(graph).run({graph.inputs[0]: x})[graph.outputs[0]].reshape(ours.shape)
            for id, other in ((f"litert-{name}", theirs), (f"python-{name}", python)):
                differing = float((ours != other).sum())
                found[id] = Outcome.single(differing, name="C", note=note)
    return found


def _share(ours: Any, theirs: Any, note: str) -> Outcome:
    largest = np.maximum(1.0, np.abs(theirs).max(axis=1, keepdims=True))
    return Outcome.single(float((np.abs(ours - theirs) / largest).max()), name="C", note=note)
