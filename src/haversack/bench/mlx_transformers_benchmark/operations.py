"""Rows of single operations, those that matter to an encoder first: matmul, linear, softmax, then others.

Each over several shapes; a row's number is the sum over its shapes. Ours where the engine has a kernel of its
own, else numpy's, said in the note.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.mlx_transformers_benchmark._bench import bench
from haversack.bench.mlx_transformers_benchmark._torch import missing_libraries

SHAPES = ((128, 768, 768), (128, 768, 3072), (16, 3072, 768), (512, 768, 768))
OPERATIONS = (
    "matmul",
    "linear",
    "softmax",
    "gelu",
    "layer-norm",
    "gather",
    "argmax",
    "sort",
    "sum",
    "concat",
)
PUBLISHED = {
    "matmul": "M1, ms: 26.38 mlx gpu, 93.82 mlx cpu, 47.87 torch mps, 504.47 torch cpu",
    "linear": "M1, ms: 30.41 mlx gpu, 73.32 mlx cpu, 53.70 torch mps, 117.68 torch cpu",
    "softmax": "M1, ms: 10.15 mlx gpu, 40.98 mlx cpu, 19.27 torch mps, 46.69 torch cpu",
}
NUMPY_ONLY = ("gather", "argmax", "sort", "sum", "concat")
Call = Callable[[], Any]


def calls(torch: Any, seed: int) -> Mapping[str, Mapping[str, list[Call]]]:
    """Operation -> side ("ours", "torch") -> one call a shape."""
    from haversack.kernels import Matrix, gate, interleave_rows, layer_norm, matmul, softmax

    rng = np.random.default_rng(seed)
    functional = torch.nn.functional
    found: dict[str, dict[str, list[Call]]] = {name: {"ours": [], "torch": []} for name in OPERATIONS}

    def both(name: str, ours: Call, theirs: Call) -> None:
        found[name]["ours"].append(ours)
        found[name]["torch"].append(theirs)

    for n, columns, rows in SHAPES:
        x = rng.standard_normal((n, columns), np.float32)
        w = rng.standard_normal((rows, columns), np.float32)
        b = rng.standard_normal(rows, np.float32)
        wide = rng.standard_normal((n, rows), np.float32)
        numbers = rng.integers(0, n, n)
        plain, ready = Matrix.from_array(w), interleave_rows(Matrix.from_array(w))
        add = np.broadcast_to(b, (n, rows)).copy()
        tx, tw, tb, twide, tn = (torch.from_numpy(array) for array in (x, w, b, wide, numbers))
        one = np.ones(columns, np.float32)
        t_one = torch.from_numpy(one)
        both("matmul", partial(matmul, x, plain), partial(torch.matmul, tx, tw.T))
        both("linear", partial(matmul, x, ready, add=add), partial(functional.linear, tx, tw, tb))
        both("softmax", partial(softmax, wide), partial(torch.softmax, twide, -1))
        both("gelu", partial(gate, wide, None, "gelu"), partial(functional.gelu, twide))
        both(
            "layer-norm",
            partial(layer_norm, x, one, one, 1e-5),
            partial(functional.layer_norm, tx, (columns,), t_one, t_one, 1e-5),
        )
        both("gather", partial(np.take, x, numbers, axis=0), partial(torch.index_select, tx, 0, tn))
        both("argmax", partial(np.argmax, x, axis=-1), partial(torch.argmax, tx, -1))
        both("sort", partial(np.sort, x, axis=-1), partial(torch.sort, tx, -1))
        both("sum", partial(np.sum, x, axis=-1), partial(torch.sum, tx, -1))
        both("concat", partial(np.concatenate, [x, x], 1), partial(torch.cat, [tx, tx], 1))
    return found


@bench.measure(
    *[
        Row(
            f"op-{name}",
            f"{name} over {len(SHAPES)} shapes of an encoder, beside PyTorch",
            "ms",
            "time",
            published=PUBLISHED.get(name),
        )
        for name in OPERATIONS
    ],
    seconds=60,
)
def operations(run: Run) -> Outcomes:
    reason = missing_libraries()
    if reason is not None:
        raise Unavailable(reason)
    import torch

    from haversack.kernels import set_threads

    torch.set_num_threads(2)
    set_threads(2)
    found = {}
    for name, sides in calls(torch, run.seed).items():
        for side in sides.values():
            total_ms(side)
        taken = run.interleave({key: partial(total_ms, side) for key, side in sides.items()}, MIN_PAIRS)
        ours = "numpy (no kernel of its own)" if name in NUMPY_ONLY else "haversack"
        found[f"op-{name}"] = Outcome(Side(ours, tuple(taken["ours"])), Side("torch", tuple(taken["torch"])))
    return found


def total_ms(side: list[Call]) -> float:
    """Time of all calls of a side, one after the other."""
    begun = time.perf_counter()
    for call in side:
        call()
    return 1e3 * (time.perf_counter() - begun)
