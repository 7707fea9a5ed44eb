"""The model in integers alone, and with the engine's static integer products, beside the simulation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.mobilequant import perplexity
from haversack.bench.mobilequant._bench import bench
from haversack.bench.mobilequant._models import LENGTH, checkpoint, trained

TEXTS, QUICK_TEXTS = 32, 8


def agreement(one: NDArray[Any], two: NDArray[Any]) -> float:
    """Share of positions with the same largest logit."""
    return float((one.argmax(-1) == two.argmax(-1)).mean())


def engine_logits(bits: int, model: Any, texts: NDArray[np.int32]) -> NDArray[np.float32]:
    """Logits of the model's pack, run with int8-static activations."""
    from haversack.core.pack import PackWriter
    from haversack.run import Engine
    from haversack.shrink._language import LanguageWalk
    from haversack.shrink._pipeline import write_compressed
    from haversack.shrink.precision._mobilequant_pack import Learned
    from haversack.shrink.precision.mobilequant import MobileQuant

    learned, walk = Learned(MobileQuant(bits=bits), model), LanguageWalk(model.architecture)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pack"
        with PackWriter(path) as writer:
            for name, shape in walk.shapes.items():
                if name in model.matrices:
                    found = learned.quantize({name: np.empty(0, np.float32)}, None)[name]
                    write_compressed(writer, name, shape, found)
                else:
                    writer.add_tensor(name, "f32", shape, [np.ascontiguousarray(model.tensors[name]).data])
            writer.finish({"architecture": dict(checkpoint().config), "plan": {"activations": "int8-static"}})
        with Engine.open(path) as engine:
            return np.stack(
                [engine.step(one, cache=engine.cache(len(one)), want="all")[0] for one in texts]  # type: ignore[misc]
            )


@bench.measure(
    *[
        Row(
            f"integers-w{bits}a8",
            f"W{bits}A8 in integers alone has the simulation's arg-max at nearly every position",
            "share of positions",
            "quality",
            Bar(">=", 0.99),
            judged="ours",
            quick=bits == 8,
        )
        for bits in (8, 4)
    ],
    *[
        Row(
            f"engine-w{bits}a8",
            f"W{bits}A8 in the engine (int8-static products, else floats) has the simulation's arg-max",
            "share of positions",
            "quality",
            judged="ours",
            quick=bits == 8,
        )
        for bits in (8, 4)
    ],
    Row(
        "engine-perplexity",
        "perplexity of the W8A8 pack in the engine over the float model's",
        "perplexity",
        "quality",
        Bar("<=", 1.03),
    ),
    seconds=60,
    quick_seconds=30,
)
def beside(run: Run) -> Outcomes:
    from haversack.bench.mobilequant._models import perplexity as measured
    from haversack.shrink.precision._mobilequant_integer import run_integer
    from haversack.shrink.precision.mobilequant_torch import simulate

    if run.quick and not trained():
        raise Unavailable("the model is not trained yet; the full bench trains it")
    found: dict[str, Outcome] = {}
    whole = perplexity.held_out(QUICK_TEXTS if run.quick else TEXTS, seed=run.seed)
    texts = whole[:, :-1]
    for bits in (8,) if run.quick else (8, 4):
        model = perplexity.made(bits, "SmoothQuant, all pairs" if run.quick else "MobileQuant")
        exact = simulate(model, texts)
        integers = np.stack([run_integer(model, one)[0] for one in texts])
        note = f"{texts.size:,} positions of texts of {LENGTH}"
        note += "; smoothed, not learned" if run.quick else ""
        found[f"integers-w{bits}a8"] = Outcome.single(agreement(integers, exact), note=note)
        fast = engine_logits(bits, model, texts)
        found[f"engine-w{bits}a8"] = Outcome.single(agreement(fast, exact), note=note)
        if bits == 8 and not run.quick:
            floats = perplexity.float_logits(perplexity.outlying()[1], texts)
            found["engine-perplexity"] = Outcome.single(
                measured(fast, whole[:, 1:]), measured(floats, whole[:, 1:]), against="float"
            )
    return found
