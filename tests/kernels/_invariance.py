"""Run in a process of its own, one for each instruction set: are the bits of an output row always the same?

Prints a digest of all results, so that instruction sets can be compared too.
"""

import hashlib

import numpy as np

from haversack import kernels


def matrices(rng: np.random.Generator, rows: int, columns: int) -> list[kernels.Matrix]:
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    made = [kernels.Matrix.from_array(values, kind) for kind in ("f32", "f16", "bf16")]
    made += [kernels.interleave_rows(matrix) for matrix in made[:2]]
    scales = rng.random(rows).astype(np.float32) * 0.02
    made.append(kernels.pack_int8(rng.integers(-128, 128, (rows, columns)), scales))
    each = rng.random((rows, -(-columns // 32))) * 0.02
    made.append(kernels.pack_int8(rng.integers(-128, 128, (rows, columns)), each, 32))
    for group in (32, 64, 96, 128):
        grouped = rng.random((rows, -(-columns // group))) * 0.1
        made.append(kernels.pack_int4(rng.integers(-8, 8, (rows, columns)), grouped, group))
        made.append(kernels.pack_int3(rng.integers(-4, 4, (rows, columns)), grouped, group))
    return made


def main() -> None:
    rng = np.random.default_rng(7)
    digest = hashlib.sha256()
    for rows, columns in ((1, 1), (15, 33), (37, 95), (64, 256), (130, 257), (513, 320)):
        x = rng.standard_normal((257, columns)).astype(np.float32)
        x[:, :: max(1, columns // 5)] *= 30  # outliers, so that scales differ
        for matrix in matrices(rng, rows, columns):
            packed = matrix.kind in ("int8", "int4", "int3")
            for activations, scale in (("f32", None), ("int8-dynamic", None), ("int8-static", 0.05)):
                if not packed and activations != "f32":
                    continue
                kernels.set_threads(1)
                whole = kernels.matmul(x, matrix, activations=activations, static_scale=scale)
                digest.update(whole.tobytes())
                for threads in (1, 2, 3, 8):
                    kernels.set_threads(threads)
                    for n in (1, 2, 7, 32, 257):
                        start = 0 if n == 257 else 3 * n
                        part = x[start : start + n]
                        got = kernels.matmul(part, matrix, activations=activations, static_scale=scale)
                        same = np.array_equal(got.view(np.uint32), whole[start : start + n].view(np.uint32))
                        assert same, (
                            matrix.kind,
                            matrix.layout,
                            matrix.group,
                            rows,
                            columns,
                            activations,
                            threads,
                            n,
                        )
        digest.update(outliers(rng, rows, columns, x))
        digest.update(shadows(rng, rows, columns, x))
    print(kernels.isa(), digest.hexdigest())


def outliers(rng: np.random.Generator, rows: int, columns: int, x: np.ndarray) -> bytes:
    """What a twentieth of the weights adds, the same however many rows and threads."""
    kept = rng.random((rows, columns)) < 0.05
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    values = rng.standard_normal(int(kept.sum())).astype(np.float32)
    made = kernels.Outliers(starts, np.nonzero(kept)[1].astype(np.uint16), values, columns)
    before = rng.standard_normal((len(x), rows)).astype(np.float32)
    kernels.set_threads(1)
    whole = made.add(x, before.copy())
    for threads in (1, 3):
        kernels.set_threads(threads)
        for n in (1, 2, 15, 16, 33):
            part = slice(n, 2 * n)
            got = made.add(x[part], before[part].copy())
            assert np.array_equal(got.view(np.uint32), whole[part].view(np.uint32)), (rows, columns, n)
    return bytes(whole.tobytes())


def shadows(rng: np.random.Generator, rows: int, columns: int, x: np.ndarray) -> bytes:
    """What static inputs miss, the same however many rows and threads."""
    matrix = kernels.pack_int8(rng.integers(-127, 128, (rows, columns)), np.full(rows, 0.01))
    made = kernels.Shadow(matrix, 0.02, out_scale=0.3, outputs=True)
    y = kernels.matmul(x, matrix, activations="int8-static", static_scale=0.02)
    kernels.set_threads(1)
    whole = made.finish(x, y)
    for threads in (1, 3):
        kernels.set_threads(threads)
        for n in (1, 2, 15, 16, 33):
            part = slice(n, 2 * n)
            got = made.finish(x[part], y[part])
            assert np.array_equal(got.view(np.uint32), whole[part].view(np.uint32)), (rows, columns, n)
    return bytes(whole.tobytes())


main()
