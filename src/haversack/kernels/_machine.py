"""Measures this machine as a `Device`: memory, storage, arithmetic, the cost of a call, the memory before any
model.

Rates are the best of several passes of the very kernels that models run on, so that a prediction from the
profile and a measurement speak of the same code.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core._files import explain_write_errors, partial_path, remove
from haversack.core.device import Device
from haversack.core.errors import HaversackError, UserError
from haversack.core.measurement import machine
from haversack.core.memory import MIB, drop_cached, run_measured
from haversack.core.progress import Progress
from haversack.core.roofline import Cost, seconds
from haversack.core.storage import DirectFile, aligned_buffer
from haversack.kernels import (
    Matrix,
    huge_copy,
    isa,
    matmul,
    pack_int3,
    pack_int4,
    pack_int8,
    set_threads,
    threads,
)
from haversack.kernels._native import native

STEPS = 14
_SIDE = 2048
_TOKENS = 192
_ROWS = 256
_BASE_IMPORTS = (
    "haversack.core.pack",
    "haversack.formats.safetensors",
    "haversack.kernels",
    "haversack.run",
    "numpy",
    "tokenizers",
)


@dataclass(frozen=True)
class Checked:
    """One call predicted from the measured profile and measured itself, in milliseconds."""

    what: str
    predicted_ms: float
    measured_ms: float


@dataclass(frozen=True)
class MachineMeasurement:
    """The profile of this machine, every figure behind it, and predictions held against measurements.

    `memory`: GB/s by what (read, copy), page (4 KiB, 2 MiB) and threads (one, all). `storage`: `mb_s` in
    large pieces, `latency_us` of 4 KiB at random places, `direct` whether the page cache was really passed.
    """

    device: Device
    memory: dict[str, dict[str, dict[str, float]]]
    storage: dict[str, Any]
    checks: tuple[Checked, ...]

    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "device": {**self.device.__dict__, "estimated": list(self.device.estimated)},
            "memory_gb_s": self.memory,
            "storage": self.storage,
            "checks": [check.__dict__ for check in self.checks],
        }


def measure_machine(
    name: str = "this-machine",
    *,
    folder: Path | None = None,
    buffer_mib: int = 256,
    bar: Progress | None = None,
) -> MachineMeasurement:
    """Measure this machine in about 20 seconds, on as many threads as kernels use.

    `folder` is where the storage is measured (default: the current folder), with a file of `buffer_mib` that
    is removed again. Raises UserError when the folder cannot be written, HaversackError without the native
    kernels.
    """
    if native() is None:
        raise HaversackError("measuring a machine needs the native kernels; unset HAVERSACK_KERNELS")
    step = bar.advance if bar is not None else _no_step
    everyone = threads()
    memory: dict[str, dict[str, dict[str, float]]] = {"read": {}, "copy": {}}
    try:
        for page, huge in (("4 KiB", False), ("2 MiB", True)):
            for what in memory:
                memory[what][page] = {}
                for label, count in (("one", 1), ("all", everyone)):
                    set_threads(count)
                    memory[what][page][label] = bandwidth_gb_s(what, huge, buffer_mib * MIB)
                    step(1, f"memory: {what} in {page} pages")
    finally:
        set_threads(everyone)
    rates = {}
    for precision in ("f32", "f16", "bf16", "int8"):
        rates[precision] = round(rate_gops(precision), 2)
        step(1, f"arithmetic: {precision}")
    storage = measure_storage(folder or Path.cwd(), buffer_mib)
    step(1, "storage")
    calls = call_us()
    base = base_ram_mib()
    step(1, "base memory")
    said = machine()
    measured = Device(
        name=name,
        title=f"{said['cpu']}, {said['cores']} cores, {said['ram_mib'] / 1024:.0f} GiB",
        cores=said["cores"],
        isa=isa(),
        ram_mib=float(said["ram_mib"]),
        storage_mib=round(shutil.disk_usage(folder or Path.cwd()).free / MIB, 1),
        read_gb_s=round(max(memory["read"]["4 KiB"].values()), 2),
        read_gb_s_one_thread=round(memory["read"]["4 KiB"]["one"], 2),
        read_gb_s_huge=round(max(memory["read"]["2 MiB"].values()), 2),
        storage_mb_s=round(storage["mb_s"], 1),
        gops=rates,
        call_us=round(calls, 3),
        base_ram_mib=round(base, 1),
        watts_idle=4.0,
        watts_busy=4.0 + 6.0 * said["cores"],
        runtime="python",
        estimated=("watts_idle", "watts_busy"),
        source="measured by haversack devices measure",
    )
    return MachineMeasurement(measured, memory, storage, check_predictions(measured))


def bandwidth_gb_s(what: str, huge: bool, nbytes: int, rounds: int = 20) -> float:
    """10^9 bytes a second that all threads together read (`read`) or copy (`copy`: bytes copied, each loaded
    once and stored once) in memory of 4 KiB or 2 MiB (`huge`) pages."""
    module = native()
    assert module is not None
    took: float = (module.fastest_read if what == "read" else module.fastest_copy)(nbytes, huge, rounds)
    return nbytes / took / 1e9


def rate_gops(precision: str) -> float:
    """10^9 operations a second of a matrix product of many rows in f32, f16, bf16 or int8 (a multiply-add is
    two)."""
    matrix, activations = _matrix(precision, _SIDE, _SIDE)
    x = _numbers(_TOKENS, _SIDE)
    out = np.empty((_TOKENS, _SIDE), np.float32)
    took = _fastest(lambda: matmul(x, matrix, activations=activations, out=out), 0.4)
    return 2 * _TOKENS * _SIDE * _SIDE / took / 1e9


def call_us() -> float:
    """Microseconds of one kernel call from Python that computes next to nothing, by the median of many."""
    matrix, _ = _matrix("f32", 16, 16)
    x = _numbers(1, 16)
    out = np.empty((1, 16), np.float32)
    took = []
    for _ in range(200):
        start = time.perf_counter()
        for _ in range(20):
            matmul(x, matrix, out=out)
        took.append((time.perf_counter() - start) / 20)
    return sorted(took)[len(took) // 2] * 1e6


def base_ram_mib() -> float:
    """Peak memory of a fresh interpreter with everything imported that running a model takes, in MiB."""
    code = (
        "import importlib, time\n"
        f"for name in {_BASE_IMPORTS!r}: importlib.import_module(name)\n"
        "from haversack.kernels import isa; isa(); time.sleep(0.05)"
    )
    done = run_measured([sys.executable, "-c", code], timeout=120)
    if done.returncode:
        raise HaversackError(
            f"a fresh interpreter could not import the package: {done.stderr.strip()[-300:]}"
        )
    return done.peak_mib


def measure_storage(folder: Path, size_mib: int = 256) -> dict[str, Any]:
    """Read a file of `size_mib` in `folder` past the page cache: `mb_s` (10^6 bytes a second) in pieces of 4
    MiB, `latency_us` of 4 KiB at random places (median), `direct`. Raises UserError when the folder cannot be
    written."""
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    if free < 2 * size_mib * MIB:
        raise UserError(
            f"measuring storage in {folder} needs a folder with {2 * size_mib} MiB free.",
            field="folder",
            given=str(folder),
        )
    path = partial_path(folder / "haversack-storage")
    piece = 4 * MIB
    try:
        with explain_write_errors(path), path.open("wb") as file:
            block = os.urandom(piece)
            for _ in range(size_mib * MIB // piece):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        drop_cached([path])
        buffer = aligned_buffer(piece)
        with DirectFile(path) as opened:
            pieces = opened.size // piece

            def everything() -> None:
                for index in range(pieces):
                    opened.read(index * piece, piece, buffer)

            took = _fastest(everything, 1.0, least=2)
            places = random.Random(0).sample(range(opened.size // 4096), min(300, opened.size // 4096))
            waits = []
            for place in places:
                start = time.perf_counter()
                opened.read(place * 4096, 4096, buffer)
                waits.append(time.perf_counter() - start)
            return {
                "mb_s": round(pieces * piece / took / 1e6, 1),
                "latency_us": round(sorted(waits)[len(waits) // 2] * 1e6, 1),
                "direct": opened.direct,
                "folder": str(folder),
            }
    finally:
        remove(path)


def check_predictions(device: Device) -> tuple[Checked, ...]:
    """Matrix products as one token and many tokens need them: predicted from `device` and measured here.

    Matrices lie in 4 KiB pages, as mapped weights do, or in 2 MiB pages, as copied ones do; they are larger
    than a processor's cache, so that each call reads them from memory.
    """
    found = []
    for kind, side in (("f32", 4096), ("int8", 8192), ("int4", 12288), ("int3", 12288)):
        few, activations = _matrix(kind, side, _ROWS)
        mapped = _repeated_in_small_pages(few, side // _ROWS)
        precision = "f32" if kind == "f32" else "int8"
        for tokens, huge in ((1, False), (1, True), (64, False)):
            matrix = mapped if not huge else replace(mapped, data=huge_copy(mapped.data))
            x = _numbers(tokens, side)
            out = np.empty((tokens, side), np.float32)
            took = _fastest(partial(matmul, x, matrix, activations=activations, out=out), 0.3)
            moved, operations = matrix.nbytes + 8 * tokens * side, 2.0 * tokens * side * side
            cost = Cost("matmul", moved, operations, precision, huge=huge)
            what = f"{kind} matrix {side} x {side}, {tokens} token{'s' if tokens > 1 else ''}"
            what += ", 2 MiB pages" if huge else ""
            found.append(Checked(what, round(seconds([cost], device) * 1e3, 3), round(took * 1e3, 3)))
    return tuple(found)


def _matrix(kind: str, columns: int, rows: int) -> tuple[Matrix, str]:
    """A matrix of `kind` and the activation type that its rate is stated for."""
    if kind.startswith("int"):
        top = {"int8": 127, "int4": 7, "int3": 3}[kind]
        values = np.random.default_rng(0).integers(-top, top + 1, (rows, columns), np.int8)
        if kind == "int8":
            return pack_int8(values, np.full(rows, 0.01, np.float32)), "int8-dynamic"
        scales = np.full((rows, columns // 64), 0.01, np.float32)
        return (pack_int4 if kind == "int4" else pack_int3)(values, scales, 64), "int8-dynamic"
    numbers = _numbers(rows, columns)
    if kind == "f16":
        data = numbers.astype(np.float16).tobytes()
    elif kind == "bf16":
        data = (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    else:
        data = numbers.tobytes()
    return Matrix.from_bytes(kind, (rows, columns), None, "rows-1", memoryview(data)), "f32"


def _repeated_in_small_pages(matrix: Matrix, times: int) -> Matrix:
    """The matrix with its rows repeated, in memory without huge pages."""
    memory = mmap.mmap(-1, matrix.nbytes * times)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    view = memoryview(memory)
    for start in range(0, len(view), matrix.nbytes):
        view[start : start + matrix.nbytes] = matrix.data.data
    shape = (matrix.rows * times, matrix.columns)
    return Matrix.from_bytes(matrix.kind, shape, matrix.group, matrix.layout, view)


def _numbers(rows: int, columns: int) -> Any:
    return np.random.default_rng(1).standard_normal((rows, columns), np.float32)


def _fastest(work: Callable[[], object], budget_s: float, least: int = 3) -> float:
    """Seconds of the fastest of at least `least` passes, and of as many as fit `budget_s`."""
    work()
    best, started, passes = float("inf"), time.perf_counter(), 0
    while passes < least or time.perf_counter() - started < budget_s:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
        passes += 1
    return best


def _no_step(steps: float = 1.0, label: str | None = None) -> None:
    """No progress is shown."""
