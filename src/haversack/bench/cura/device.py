"""The C file of a network of 307 numbers: its bytes, its outputs, its time."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.cura._bench import bench, targets
from haversack.bench.cura.functions import fitted
from haversack.models.series._cura_c import weight_nbytes

CALLS = 20_000


@bench.measure(
    Row("c-bytes", "constants of the C file, 307 numbers", "bytes", "bytes", Bar("<=", 2048), judged="ours"),
    Row(
        "c-difference",
        "mean difference of the C file's outputs from the float network's, as a share of their range",
        "share",
        "quality",
        Bar("<=", 0.01),
        judged="ours",
    ),
    Row(
        "c-us",
        "one inference of the C file on one core",
        "us",
        "time",
        Bar("<=", 50.0),
        judged="ours",
        quick=True,
    ),
    seconds=40,
    quick_seconds=12,
)
def device(run: Run) -> Outcomes:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Unavailable("there is no C compiler (cc) on this machine")
    task = targets()[0]
    model = fitted("chirp", 4, 2) if run.quick else fitted("chirp", 6, 3)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "cura.c")
        loop = (
            "void many(const float *x, float *y, int n) {\n"
            "    for (int i = 0; i < n; i++) cura_run(x + i % 800, y + i % 800);\n}"
        )
        source.write_text(model.export_c(rows=task.x) + loop + "\n", encoding="utf-8")
        line = [
            compiler,
            "-std=c99",
            "-O2",
            "-shared",
            "-fPIC",
            str(source),
            "-o",
            f"{folder}/cura.so",
            "-lm",
        ]
        subprocess.run(line, check=True)
        library: Any = ctypes.CDLL(f"{folder}/cura.so")
        x = np.ascontiguousarray(task.test_x[:, 0], np.float32)
        y = np.zeros(len(x), np.float32)
        places = (x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p))
        times = []
        for _ in range(9):
            start = time.perf_counter()
            library.many(*places, CALLS)
            times.append((time.perf_counter() - start) / CALLS * 1e6)
    made = model.predict(task.test_x)
    away = float(np.abs(y - made).mean() / np.ptp(made))
    return {
        "c-bytes": Outcome.single(weight_nbytes(model)),
        "c-difference": Outcome.single(
            away, note="int8 weights, tanh from a table of 64 entries; fitted to the rows of the training"
        ),
        "c-us": Outcome(Side("C, int8", tuple(times[2:]))),
    }
