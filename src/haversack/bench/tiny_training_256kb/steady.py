"""What holds to the bit or to the unit: known answers of the checkpoints, two ways to scale, products."""

from __future__ import annotations

import time

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.tiny_training_256kb._bench import MAIN, MODELS, PUBLISHED, bench, model_file

PRODUCTS = {"mcunet": 22_453_504, "mbv2": 16_646_912, "proxyless": 18_619_904}
KNOWN = {"chelsea": 285, "coffee": 967}


def sample(name: str, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    """The middle square of a picture of scikit-image as codes [1, size, size, 3]."""
    try:
        import skimage.data
        from skimage.transform import resize
    except ImportError:
        raise Unavailable("scikit-image is not installed; run: pip install 'haversack[bench]'") from None
    picture = getattr(skimage.data, name)()
    side = min(picture.shape[:2])
    top, left = ((each - side) // 2 for each in picture.shape[:2])
    square = picture[top : top + side, left : left + side]
    small = resize(square, (size, size), anti_aliasing=True, preserve_range=True)
    return np.rint(small - 127.5).astype(np.int8)[None]


@bench.measure(
    Row(
        "known-answers",
        "the three checkpoints name a cat (285) and an espresso (967)",
        "of 6",
        "quality",
        Bar("==", 6),
        judged="ours",
        published="6 of 6",
        quick=True,
    ),
    Row(
        "fixed-point",
        "one operation by fixed-point multipliers differs from float scales by at most one code",
        "codes",
        "quality",
        Bar("<=", 1),
        judged="ours",
        published="<=1",
        quick=True,
    ),
    seconds=10,
    quick_seconds=8,
)
def answers(run: Run) -> Outcomes:
    from haversack.models.graph._execute import KERNELS, Machine
    from haversack.models.graph.mcu import load_mcu

    right, most = 0, 0
    for model in MODELS:
        graph = load_mcu(model_file(model))
        fixed = Machine(graph, "fixed")
        for name, wanted in KNOWN.items():
            values = {graph.inputs[0]: sample(name, graph.tensors[graph.inputs[0]].shape[0])}
            exact = Machine(graph)
            for op in graph.ops:
                other = dict(values)
                KERNELS[type(op)](exact, op, values)
                KERNELS[type(op)](fixed, op, other)
                y = op.writes[0]
                most = max(most, int(np.abs(values[y].astype(int) - other[y].astype(int)).max()))
            right += int(values[graph.outputs[0]].argmax()) == wanted
    return {
        "known-answers": Outcome.single(right, 6, against="all"),
        "fixed-point": Outcome.single(most, note="every operation of the three networks, two pictures"),
    }


@bench.measure(
    Row(
        "forward",
        "the first 36 convolutions of mcunet, a picture at a time, beside eight at a time",
        "s a picture",
        "time",
        Bar("<=", 0.07),
        judged="ours",
        published=0.07,
        quick=True,
    ),
    seconds=10,
    quick_seconds=6,
)
def forward(run: Run) -> Outcomes:
    from haversack.bench.tiny_training_256kb._arms import cut_below
    from haversack.models.graph._execute import Machine
    from haversack.models.graph.mcu import load_mcu
    from haversack.models.graph.training import split

    graph = load_mcu(model_file(MAIN))
    at = cut_below(graph, 36)
    machine = Machine(split(graph, at)[0])
    seen = np.random.default_rng(run.seed).integers(-128, 128, (8, 128, 128, 3)).astype(np.int8)

    def taken(rows: int) -> float:
        began = time.perf_counter()
        machine.run({graph.inputs[0]: seen[:rows]})
        return (time.perf_counter() - began) / rows

    taken(8)
    sides = run.interleave({"one": lambda: taken(1), "eight": lambda: taken(8)}, 9)
    return {"forward": Outcome.of(sides, ours="one", baseline="eight")}


def product_rows() -> list[Row]:
    """One for each network, one for the step."""
    return [
        *(
            Row(
                f"macs-{model}",
                f"products of the convolutions of {model} at 128 x 128",
                "products",
                "bytes",
                Bar("==", count),
                judged="ours",
                published=f"{count / 1e6:.3f} M",
            )
            for model, count in PRODUCTS.items()
        ),
        Row("macs-step", "products of a step of the 99.84 KiB scheme, beside a whole one", "products",
            "bytes"),
    ]  # fmt: skip


@bench.measure(*product_rows(), seconds=5)
def products(run: Run) -> Outcomes:
    from haversack.models.graph import plan
    from haversack.models.graph.mcu import load_mcu
    from haversack.models.graph.training import HEAD, compiled, with_head
    from haversack.train.parameters.sparse import Scheme, learned_channels

    found: dict[str, Outcome | Unavailable] = {}
    for model in MODELS:
        graph = load_mcu(model_file(model))
        last = graph.constants[graph.linears()[-1].weight].size
        found[f"macs-{model}"] = Outcome.single(plan.products(graph)["forward"] - last)
        if model == MAIN:
            ready = with_head(graph, 10, 0)
            sums = []
            for scheme in (PUBLISHED[MAIN]["100"][0], Scheme.last(42, 42)):
                wanted = {**learned_channels(ready, scheme), **dict.fromkeys(HEAD)}
                sums.append(sum(compiled(ready, wanted).macs.values()))
            found["macs-step"] = Outcome.single(sums[0], sums[1], against="all layers")
    return found
