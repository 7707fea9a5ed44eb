"""Where a method goes wrong: signal to noise of every matrix, cosine of outputs, channels that stand out.

The larger model at 3 bits (4 where 3 are not there), on held-out strings. What a matrix makes of the inputs
it really gets, the blocks before it compressed too, is held against what the float matrix makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.edge_asr._bench import NAMES, SETTINGS, bench, choice
from haversack.bench.edge_asr._models import calibration_pieces, folder_of, pack_of
from haversack.bench.edge_asr._strings import SEED, test_sets
from haversack.kernels import Matrix, unpack
from haversack.shrink._diagnostics import channel_maxima, cosine, kurtosis, signal_to_noise_db
from haversack.shrink._rounding import F32

METHODS = ("rtn", "gptq", "awq")
STRINGS = 3  # of every speaker


@dataclass
class Seen:
    """What a pass saw: the inputs of every matrix, and every block's output, piece after piece."""

    inputs: dict[str, list[F32]] = field(default_factory=dict)
    outputs: dict[int, list[F32]] = field(default_factory=dict)


def passes(size: str, weights: Any, strings: Any) -> Seen:
    """Send `strings` through all blocks; `weights(name)` gives a tensor, bound."""
    from haversack.run._speech_source import open_speech
    from haversack.shrink._speech import SpeechWalk

    model = open_speech(folder_of(size))
    walk = SpeechWalk(model.architecture, model.source)
    seen = Seen()

    def tap(name: str, x: F32) -> None:
        seen.inputs.setdefault(name, []).append(np.array(x))

    held = {name: weights(name) for name in walk.first}
    pieces = [walk.embed(one, held) for one in calibration_pieces(folder_of(size), strings)]
    for block in range(walk.blocks):
        bound = {name: weights(name) for name in walk.names(block)}
        pieces = [walk.run(block, piece, bound, tap) for piece in pieces]
        seen.outputs[block] = [piece[1:] for piece in pieces]
    return seen


def tensors_of(size: str, pack: Any) -> tuple[Any, Any]:
    """Functions of a name: the float tensor f32, and what `pack` holds of it, bound and dense."""
    from haversack.run._speech_source import open_speech
    from haversack.shrink._source import read_tensor

    source = open_speech(folder_of(size)).source

    def plain(name: str) -> F32:
        return read_tensor(source, name)

    def packed(name: str) -> Any:
        entry = pack.tensors.get(name)
        if entry is None:
            raise Unavailable(f"{name} is stored in several parts")
        if entry.kind == "f32":
            return np.frombuffer(pack.bytes(name), np.float32).reshape(entry.shape)
        return Matrix.from_bytes(entry.kind, entry.shape, entry.group, entry.layout, pack.bytes(name))

    return plain, packed


def bound(values: F32) -> Any:
    """As the engine takes it: matrices laid out, vectors as they are."""
    return Matrix.from_array(values) if values.ndim == 2 else values


def by_kind(values: dict[str, float]) -> str:
    """The medians of matrices of a kind, such as fc1."""
    kinds: dict[str, list[float]] = {}
    for name, value in values.items():
        kinds.setdefault(name.split(".")[-2], []).append(value)
    return ", ".join(f"{kind} {np.median(found):.1f}" for kind, found in sorted(kinds.items()))


@bench.measure(
    *(
        Row(
            f"sqnr-{method}",
            f"{NAMES[method]} in few bits, larger model: signal to noise of a product, median of matrices",
            "dB",
            "quality",
        )
        for method in METHODS
    ),
    *(
        Row(
            f"cosine-{method}",
            f"{NAMES[method]} in few bits, larger model: cosine of the last block's output to float",
            "cosine",
            "quality",
            judged="ours",
        )
        for method in METHODS
    ),
    Row(
        "channel-maxima",
        "largest channel over the median channel, at the input that stands out most",
        "ratio",
        "quality",
    ),
    Row(
        "channel-kurtosis", "kurtosis of the channel that stands out most (3: normal)", "kurtosis", "quality"
    ),
    seconds=120,
)
def diagnostics(run: Run) -> Outcomes:
    from haversack.core.pack import Pack

    size = "base"
    strings = [one for few in test_sets(STRINGS, SEED).values() for one in few]
    found: dict[str, Outcome | Unavailable] = {}
    nearest: dict[str, float] = {}
    reference: Seen | None = None
    for method in METHODS:
        try:
            chosen = _narrowest(method)
            pack = Pack.open(pack_of(size, chosen))
            plain, packed = tensors_of(size, pack)
            if reference is None:
                reference = passes(size, lambda name: bound(plain(name)), strings)  # noqa: B023 - used at once
                found |= channels(reference)
            seen = passes(size, packed, strings)
            noise = {}
            for name, pieces in seen.inputs.items():
                x = np.concatenate(pieces)
                noise[name] = signal_to_noise_db(x @ plain(name).T, x @ unpack(packed(name)).T)
        except Unavailable as reason:
            found[f"sqnr-{method}"] = found[f"cosine-{method}"] = reason
            continue
        nearest = nearest or noise
        cosines = [
            float(
                np.mean([cosine(a, b) for a, b in zip(reference.outputs[at], seen.outputs[at], strict=True)])
            )
            for at in sorted(seen.outputs)
        ]
        note = f"{chosen}; worst {min(noise, key=lambda name: noise[name])}; by kind: {by_kind(noise)}"
        found[f"sqnr-{method}"] = Outcome(
            Side(chosen, tuple(noise.values())),
            Side("round-to-nearest", tuple(nearest[name] for name in noise)),
            note,
        )
        found[f"cosine-{method}"] = Outcome.single(
            cosines[-1], name=chosen, note="by block: " + ", ".join(f"{one:.3f}" for one in cosines)
        )
    return found


def channels(seen: Seen) -> dict[str, Outcome | Unavailable]:
    """The inputs whose channels differ most."""
    spread, peaked = {}, {}
    for name, pieces in seen.inputs.items():
        x = np.concatenate(pieces)
        maxima = channel_maxima(x)
        spread[name] = float(maxima.max() / max(float(np.median(maxima)), 1e-9))
        peaked[name] = float(kurtosis(x).max())
    widest, sharpest = (max(values, key=lambda name: values[name]) for values in (spread, peaked))
    return {
        "channel-maxima": Outcome.single(
            spread[widest], float(np.median(list(spread.values()))), name=widest, against="median over inputs"
        ),
        "channel-kurtosis": Outcome.single(
            peaked[sharpest],
            float(np.median(list(peaked.values()))),
            name=sharpest,
            against="median over inputs",
        ),
    }


def _narrowest(method: str) -> str:
    """3 bits where the method has them, else 4."""
    try:
        return choice(method, SETTINGS["w3a16"])
    except Unavailable:
        return choice(method, SETTINGS["w4a16"])
