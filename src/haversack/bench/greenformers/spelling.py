"""Real weights: the 1x1 convolutions of a speech network that names spelled letters, factored by SVD.

The network is Moonshine's SpellingCNN (ONNX, 51 classes, digits among them). Its 1x1 convolutions at 0.75 of
the limit's rank are put back dense, which computes the same numbers, and both networks hear recorded digits.
They were recorded at 8 kHz and are resampled; the largest of the ten digits' logits is the answer. The front
end is rebuilt from the network's description, so its accuracy is a comparison of the two, not the network's
own.
"""

from __future__ import annotations

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench._spelling_cnn import (
    MODEL,
    answers,
    data,
    heard,
    log_mel,
    named_digits,
    onnx_libraries,
    pointwise,
    spoken_digits,
)
from haversack.bench.greenformers._bench import bench
from haversack.shrink.structure.low_rank import Shape, factor, relative_error

__all__ = ["log_mel", "spelling"]

SHARE = 0.75


@bench.measure(
    Row(
        "spelling-accuracy",
        "SpellingCNN, 1x1 convolutions at 0.75 of the limit by SVD, not trained again: spoken digits named "
        "rightly, beside dense",
        "share",
        "quality",
    ),
    Row("spelling-agreement", "answers that stay the same", "share", "quality", judged="ours"),
    Row(
        "spelling-weights", "weights of those convolutions, beside dense", "weights", "bytes", Bar("<=", 0.76)
    ),
    Row(
        "spelling-error",
        "mean relative error of those convolutions: svd beside semi-NMF",
        "relative",
        "quality",
        Bar("<=", 1.0),
    ),
    seconds=60,
)
def spelling(run: Run) -> Outcomes:
    path = data(MODEL)
    onnx, _ = onnx_libraries()
    model = onnx.load(str(path))
    before = after = 0
    errors: dict[str, list[float]] = {"svd": [], "snmf": []}
    for _, initial in pointwise(model):
        dense = onnx.numpy_helper.to_array(initial)
        matrix = dense[:, :, 0, 0].T
        shape = Shape(*matrix.shape)
        rank = shape.rank(SHARE)
        before += shape.dense
        after += shape.dense if rank is None else shape.factored(rank)
        if rank is None:
            continue
        for solver, taken in errors.items():
            factors = factor(matrix, rank, solver, 10 if solver == "svd" else 30)
            taken.append(relative_error(matrix, *factors))
            if solver == "svd":
                product = np.ascontiguousarray((factors[0] @ factors[1]).T).reshape(dense.shape)
                initial.CopyFrom(onnx.numpy_helper.from_array(product, initial.name))
    found: dict[str, Outcome | Unavailable] = {
        "spelling-weights": Outcome.single(after, before, against="dense"),
        "spelling-error": Outcome(
            Side("svd", (float(np.mean(errors["svd"])),)),
            Side("snmf", (float(np.mean(errors["snmf"])),)),
            "by layer: " + ", ".join(f"{one:.2f}" for one in errors["svd"]),
        ),
    }
    try:
        features, digits = heard(spoken_digits()[::5])
    except Unavailable as missing:
        return found | {"spelling-accuracy": missing, "spelling-agreement": missing}
    named = [
        named_digits(answers(content, features)) for content in (path.read_bytes(), model.SerializeToString())
    ]
    dense_right, thin_right = (float((one == digits).mean()) for one in named)
    note = f"{len(digits)} recordings of digits, chance 0.1"
    found["spelling-accuracy"] = Outcome.single(thin_right, dense_right, against="dense", note=note)
    found["spelling-agreement"] = Outcome.single(float((named[0] == named[1]).mean()), note=note)
    return found
