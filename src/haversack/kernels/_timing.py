"""What matrix products cost here: `python -m haversack.kernels._timing [--tokens 1 8] [--kinds int4:32 f16]`.

Each line is one kind of weights at one number of tokens and threads: the median time of a product of 2048
inputs and 5632 outputs over different matrices that together exceed the caches, its bytes of weights per
second beside what reading memory gave just then with all threads, and its operations per second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np

from haversack.kernels._machine import bandwidth_gb_s
from haversack.kernels._matrix import GROUPS, SMALL, Matrix, pack_int3, pack_int4, pack_int8
from haversack.kernels.memory import huge_copy
from haversack.kernels.processor import isa, set_threads, usable_processors
from haversack.kernels.products import matmul

ROWS, COLUMNS = 5632, 2048
BEYOND_CACHES = 192 << 20
READ = 96 << 20


def matrices_of(kind: str, nbytes: int = BEYOND_CACHES) -> list[Matrix]:
    """Random matrices of `kind` (int4, int3 with their group: int4:32), `nbytes` in all, in huge pages."""
    rng = np.random.default_rng(0)
    name, _, group = kind.partition(":")
    if name in SMALL:
        per_scale = int(group or GROUPS[0])
        scales = rng.random((ROWS, -(-COLUMNS // per_scale))) * 0.1
        top = 1 << (SMALL[name] - 1)
        pack = pack_int4 if name == "int4" else pack_int3
        made = pack(rng.integers(-top, top, (ROWS, COLUMNS), np.int8), scales, per_scale)
    elif name == "int8":
        made = pack_int8(rng.integers(-127, 128, (ROWS, COLUMNS), np.int8), rng.random(ROWS) * 0.01)
    else:
        made = Matrix.from_array(rng.standard_normal((ROWS, COLUMNS), np.float32), name)
    copies = max(1, nbytes // made.nbytes)
    return [
        Matrix(made.kind, ROWS, COLUMNS, made.group, made.layout, huge_copy(made.data)) for _ in range(copies)
    ]


def seconds_of(matrices: Sequence[Matrix], tokens: int, activations: str, rounds: int = 5) -> float:
    """Median seconds of one product, over `rounds` walks through all `matrices`."""
    x = np.random.default_rng(1).standard_normal((tokens, COLUMNS), np.float32)
    out = np.empty((tokens, ROWS), np.float32)
    walks = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for matrix in matrices:
            matmul(x, matrix, activations=activations, out=out)
        walks.append((time.perf_counter() - start) / len(matrices))
    return statistics.median(walks[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the matrix products on this machine.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 256])
    parser.add_argument(
        "--kinds", nargs="+", default=["int3:64", "int4:32", "int4:128", "int8", "f16", "f32"]
    )
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, usable_processors()}))
    given = parser.parse_args()
    print(f"{isa()}; weights {COLUMNS} x {ROWS}")
    print("kind      inputs  tokens  threads        ms      GB/s  reading   GOP/s")
    for kind in given.kinds:
        matrices = matrices_of(kind)
        for activations in ("int8-dynamic", "f32") if kind.startswith("int") else ("f32",):
            for tokens in given.tokens:
                for threads in given.threads:
                    set_threads(threads)
                    some = matrices if tokens < 32 else matrices[:2]
                    took = seconds_of(some, tokens, activations)
                    speed, reading = matrices[0].nbytes / took / 1e9, bandwidth_gb_s("read", True, READ, 5)
                    print(
                        f"{kind:9} {activations[:4]:6} {tokens:7} {threads:8} {took * 1e3:9.3f} {speed:9.1f} "
                        f"{reading:8.1f} {2e-9 * ROWS * COLUMNS * tokens / took:7.0f}"
                    )


if __name__ == "__main__":
    main()
