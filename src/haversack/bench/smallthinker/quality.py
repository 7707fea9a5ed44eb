"""What a router before attention costs in loss, how many neurons are zero, and which output rows matter.

Losses are nats a byte on text that neither training nor calibration saw.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.smallthinker import _twins
from haversack.bench.smallthinker._bench import bench

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
EXACT = "keep:kind=f32"
LATER, QUICK_LATER = 32_768, 8_192
RANK, CODE_RANK = 64, 96
FFN_ROWS, FFN_WIDTH, ZEROS = 768, 2560, 0.6
"""An expert of the 21B model, and the share of zeros that its report gives."""


def pieces(run: Run) -> list[I32]:
    """Text that is measured on, in pieces."""
    _, _, later = _twins.parts()
    count = (QUICK_LATER if run.quick else LATER) // _twins.PIECE
    first = int(np.random.default_rng(run.seed).integers(0, len(later) - count * _twins.PIECE))
    return [later[first + i * _twins.PIECE :][: _twins.PIECE] for i in range(count)]


def loss_of(logits: F32, text: I32) -> float:
    """Mean next-token loss of logits f32 [n, vocabulary] after the tokens `text` i32 [n]."""
    rows = logits[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(rows, text[1:, None].astype(np.int64), axis=1)[:, 0]
    return float((np.log(np.exp(rows).sum(axis=1)) - chosen).mean())


@bench.measure(
    Row(
        "router-loss",
        "validation loss of the twin whose router comes before attention, beside behind it, at equal steps",
        "nats/byte",
        "quality",
        Bar("<=", 1.015),
        quick=True,
    ),
    Row(
        "zeros",
        "share of zeros inside the chosen experts, on later text",
        "share",
        "quality",
        Bar(">=", 0.5),
        judged="ours",
        published="> 60 %",
        quick=True,
    ),
    Row("zeros-late", "the same of the twin whose router comes behind attention", "share", "quality"),
    seconds=500,
    quick_seconds=20,
)
def twins(run: Run) -> Outcomes:
    _twins.trained(run)
    from haversack.run import Engine

    losses: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    for name in _twins.TWINS:
        way = "streamed:smallthinker,buffer_kib=100000,micro_batch=256"
        with Engine.open(_twins.pack(name, EXACT), residency=way, activations="f32") as engine:
            for text in pieces(run):
                logits, _ = engine.step(text, cache=engine.cache(len(text)), want="all")
                losses.setdefault(name, []).append(loss_of(logits, text))
            told = engine.held.record()["neurons"]
            shares[name] = [1 - told["activated"] / told["examined"]]
    means = {name: [float(np.mean(values))] for name, values in losses.items()}
    note = f"{_twins.TRAINING['steps']} steps of {_twins.TRAINING['batch']} bytes each"
    return {
        "router-loss": Outcome.of(means, ours="early", baseline="late", note=note),
        "zeros": Outcome(Side("early", tuple(shares["early"]))),
        "zeros-late": Outcome(Side("late", tuple(shares["late"]))),
    }


@bench.measure(
    Row(
        "ffn-exact",
        "logits in f32 that differ from those of the same layers reading every neuron",
        "logits",
        "quality",
        Bar("==", 0.0),
        judged="ours",
        quick=True,
    ),
    seconds=15,
    quick_seconds=10,
)
def exact(run: Run) -> Outcomes:
    _twins.trained(run)
    from haversack.run import Engine

    text = pieces(run)[0][:64]
    found = []
    with Engine.open(_twins.pack("early", EXACT, "reglu"), activations="f32", residency="copied") as engine:
        for everything in (False, True):
            cache = engine.cache(len(text))
            cache.sparse_from = len(text) if everything else 0
            found.append(
                np.concatenate([engine.step(text[at : at + 1], cache=cache)[0] for at in range(len(text))])
            )
    return {"ffn-exact": Outcome.single(int((found[0] != found[1]).sum()), note=f"of {found[0].size}")}


@bench.measure(
    Row(
        "ffn-f32",
        "an expert of the 21B model's shape on one token, 60 % of its neurons zero: dense beside sparse, f32",
        "us",
        "time",
    ),
    Row("ffn-f16", "the same in f16", "us", "time"),
    Row("ffn-int4", "the same at 4 bits, groups of 64, f32 activations", "us", "time"),
    seconds=40,
)
def layer(run: Run) -> Outcomes:
    """Of one expert: gate, up, down. The sparse one computes its gate in full."""
    found: dict[str, Outcome] = {}
    for kind in ("f32", "f16", "int4"):
        sides = sparse_and_dense(kind, run.seed)
        taken = run.interleave({name: partial(timed, side) for name, side in sides.items()}, MIN_PAIRS)
        found[f"ffn-{kind}"] = Outcome.of(taken, ours="sparse", baseline="dense")
    return found


def timed(side: Any, calls: int = 60) -> float:
    """Microseconds of a call."""
    side()
    began = perf_counter()
    for _ in range(calls):
        side()
    return 1e6 * (perf_counter() - began) / calls


def sparse_and_dense(kind: str, seed: int) -> dict[str, Any]:
    """The two ways to compute one expert, over the same numbers."""
    from haversack.kernels import Matrix, SparseMatrix, gate, matmul
    from haversack.kernels.neurons import Neurons
    from haversack.shrink.precision.keep import Keep
    from haversack.shrink.precision.round_to_nearest import RoundToNearest
    from haversack.shrink.structure._row_sparse import by_columns

    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, FFN_WIDTH)).astype(np.float32)
    weights: dict[str, F32] = {
        part: rng.standard_normal((FFN_ROWS, FFN_WIDTH), np.float32) / np.float32(50)
        for part in ("gate", "up")
    }
    weights["down"] = rng.standard_normal((FFN_WIDTH, FFN_ROWS), np.float32) / np.float32(28)
    # The gate rows of the neurons that are to be zero point away from the input.
    below = rng.permutation(FFN_ROWS) < ZEROS * FFN_ROWS
    signs = np.where(below, -1, 1) * np.sign(weights["gate"] @ x[0])
    weights["gate"] *= signs[:, None].astype(np.float32)
    inner: Any = Keep(kind=kind) if kind != "int4" else RoundToNearest(bits=4, group=64)
    made: dict[str, Matrix] = {
        name: inner.quantize({name: weight}, None)[name].packed() for name, weight in weights.items()
    }
    neurons = Neurons(by_columns(np.ascontiguousarray(weights["up"].T), inner))
    down = SparseMatrix(by_columns(weights["down"], inner), np.zeros(FFN_ROWS, np.float32))

    def dense() -> F32:
        inner, up = matmul(x, made["gate"]), matmul(x, made["up"])
        gate(inner, up, "relu", out=inner)
        found: F32 = matmul(inner, made["down"])
        return found

    def sparse() -> F32:
        inner = matmul(x, made["gate"])
        gate(inner, None, "relu", out=inner)
        neurons.gated(x, inner, out=inner)
        found: F32 = down.multiply(inner)
        return found

    difference = np.abs(dense() - sparse()).max() / np.abs(dense()).max()
    assert difference < (0.2 if kind == "int4" else 1e-3), "the two ways compute the same layer"
    return {"dense": dense, "sparse": sparse}


@bench.measure(
    Row(
        "head-skipped",
        "rows of the output matrix that the predictor leaves out, on later text (256 bytes)",
        "share",
        "quality",
        Bar(">=", 0.6),
        judged="ours",
        quick=True,
    ),
    Row(
        "head-agrees",
        "tokens whose likeliest next byte is among the rows computed",
        "share",
        "quality",
        Bar(">=", 0.99),
        judged="ours",
        quick=True,
    ),
    Row(
        "head-skipped-code",
        "rows that the predictor of `code` leaves out (5,120 tokens), on later text",
        "share",
        "quality",
        Bar(">=", 0.6),
        judged="ours",
    ),
    Row(
        "head-agrees-code",
        "tokens whose likeliest next token is among the rows computed",
        "share",
        "quality",
        Bar(">=", 0.99),
        judged="ours",
    ),
    Row(
        "head-time-code",
        "a token's logits from the rows that the predictor names, beside all rows (f16)",
        "us",
        "time",
    ),
    seconds=200,
    quick_seconds=30,
)
def head(run: Run) -> Outcomes:
    _twins.trained(run)
    from haversack.core.pack import Pack
    from haversack.models import read_architecture
    from haversack.run import Engine
    from haversack.run._head_predictor import HeadPredictor

    path = _twins.pack("early", f"q4_0:predictor={RANK}")
    source = Pack.open(path)
    predictor = HeadPredictor.of(source, read_architecture(source.record.architecture))
    with Engine.open(path, residency="copied", activations="f32") as engine:
        states, logits = [], []
        for text in pieces(run)[:8]:
            found, hidden = engine.step(text, cache=engine.cache(len(text)), want="all")
            states.append(hidden)
            logits.append(found)
    skipped, agrees = judged(predictor, np.concatenate(states), np.concatenate(logits))
    found_rows: dict[str, Any] = {
        "head-skipped": Outcome.single(skipped, note=f"rank {RANK}, trained on calibration text"),
        "head-agrees": Outcome.single(agrees),
    }
    return found_rows if run.quick else found_rows | code_head(run)


def judged(predictor: Any, states: F32, logits: F32) -> tuple[float, float]:
    """Share of rows left out, and of tokens whose likeliest row is computed."""
    scores = predictor.scores(states)
    above = scores > predictor.limit
    likeliest = logits.argmax(axis=1)
    return 1 - float(above.mean()), float(above[np.arange(len(above)), likeliest].mean())


def code_head(run: Run) -> dict[str, Outcome]:
    """The same for the bundled model: trained on the calibration text that ships, measured on the evaluation
    text."""
    from haversack.kernels import Matrix, matmul, unpack
    from haversack.models._calibration import default_text
    from haversack.run import Engine
    from haversack.run._head_predictor import some_rows

    try:
        from haversack.shrink._head_predictor_torch import Training, trained
    except ImportError as error:
        raise Unavailable("training the predictor needs torch") from error
    with Engine.open("code", residency="copied") as engine:
        tokenizer = engine.model.tokenizer()

        def states_of(text: str, most: int) -> tuple[F32, F32]:
            """Normed hidden states and logits of the first `most` tokens."""
            tokens = np.asarray(tokenizer.encode(text[: 8 * most], special=False)[:most], np.int32)
            states, logits = [], []
            for at in range(0, len(tokens), 512):
                found, hidden = engine.step(tokens[at : at + 512], cache=engine.cache(512), want="all")
                states.append(hidden)
                logits.append(found)
            return np.concatenate(states), np.concatenate(logits)

        seen, _ = states_of(default_text("calibration"), 16_384)
        later, logits = states_of(default_text("evaluation"), 4_096)
        (_, table), *_ = engine.held.head()
        output = unpack(table)
    predictor = trained("code", seen, output, CODE_RANK, how=Training(steps=200))
    skipped, agrees = judged(predictor, later, logits)
    matrix = Matrix.from_array(output, "f16")
    one = later[:1].copy()

    def sparse() -> Any:
        return some_rows(one, matrix, predictor.active(one), "f32")

    taken = run.interleave(
        {"sparse": partial(timed, sparse), "dense": partial(timed, lambda: matmul(one, matrix))}, MIN_PAIRS
    )
    return {
        "head-skipped-code": Outcome.single(skipped, note=f"rank {CODE_RANK}"),
        "head-agrees-code": Outcome.single(agrees),
        "head-time-code": Outcome.of(taken, ours="sparse", baseline="dense"),
    }
