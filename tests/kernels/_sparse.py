"""Run in a process of its own, one for each instruction set: are the bits of a row of a row-skipping product
always the same, and do they equal the definition?

Prints a digest of all results, so that instruction sets can be compared too.
"""

import hashlib

import numpy as np

from haversack import kernels
from haversack.kernels.sparse import sparse_twin


def main() -> None:
    rng = np.random.default_rng(7)
    digest = hashlib.sha256()
    for rows, columns in ((1, 1), (15, 33), (130, 95), (513, 320), (4300, 70)):
        x = rng.standard_normal((37, columns)).astype(np.float32)
        whole = rng.random(37) < 0.3
        rank = min(7, rows, columns)
        down = kernels.pack_channels(rng.standard_normal((rank, columns)).astype(np.float32), "f16")
        up = kernels.pack_channels(rng.standard_normal((rows, rank)).astype(np.float32))
        limits = rng.random(columns).astype(np.float32)
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        made = [kernels.pack_channels(values, kind) for kind in ("f32", "f16", "bf16")]
        for group in (64, 128):
            scales = rng.random((-(-rows // group), columns)).astype(np.float32) * 0.1
            codes = rng.integers(-8, 8, (rows, columns)).astype(np.int8)
            made.append(kernels.pack_channels_int4(codes, scales, group))
        for weights in made:
            matrix = kernels.SparseMatrix(weights, limits, down, up)
            for activations in ("f32", "int8-dynamic"):
                kernels.set_threads(1)
                every = matrix.multiply(x, whole=whole, activations=activations)
                wanted = sparse_twin(matrix, x, whole, activations)
                assert np.allclose(every, wanted, rtol=1e-4, atol=1e-3), (weights.kind, activations)
                digest.update(every.tobytes())
                for threads in (1, 2, 5):
                    kernels.set_threads(threads)
                    for n in (1, 2, 7, 37):
                        start = 0 if n == 37 else 2 * n
                        part = slice(start, start + n)
                        got = matrix.multiply(x[part], whole=whole[part], activations=activations)
                        same = np.array_equal(got.view(np.uint32), every[part].view(np.uint32))
                        assert same, (weights.kind, weights.group, rows, columns, activations, threads, n)
    print(kernels.isa(), digest.hexdigest())


main()
