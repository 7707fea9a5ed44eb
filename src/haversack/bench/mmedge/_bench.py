"""The bench object that the files of this folder add their rows to, and the answers of the shipped network
over recordings that nothing was trained or chosen on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from haversack.bench._cache import cached
from haversack.bench._harness import Bench, Run
from haversack.bench._store import content_hash
from haversack.models.streams._events import Recordings, make
from haversack.models.streams._folder import PHOTOS, bundled, read_photos
from haversack.models.streams._model import FAST, SLOW, StreamsModel
from haversack.models.streams._record import CHECKPOINTS
from haversack.models.streams._units import checkpoints, planned_frames
from haversack.sense._pipeline_run import Units
from haversack.sense._pipeline_space import Config

NETWORK = ("models/streams/*.py", "reference_models/events/*")
FILES = (*NETWORK, "bench/mmedge/_bench.py", "sense/pipeline.py", "sense/_pipeline_*.py")
F32 = NDArray[np.float32]
TEST, QUICK = 2400, 240
TRAINED = 6
"""Photographs that the training saw; recordings of the bench lie over the others."""
LARGEST = Config("large", 30, "large", 400)

bench = Bench("mmedge", number=6, watches=FILES)


@functools.cache
def model() -> StreamsModel:
    """The shipped network."""
    return StreamsModel.open("events")


def photos() -> NDArray[np.uint8]:
    """The photographs of the shipped network."""
    return read_photos(bundled("events") / PHOTOS)


def recordings(count: int, seed: int) -> Recordings:
    """Recordings over photographs that the training did not see; seeds of the training are below 1000."""
    return make(count, 1000 + seed, photos()[TRAINED:])


def units_of(data: Recordings, at: int) -> Units:
    """A recording, to be played."""
    return Units(data.frames[at], data.sound[at])


@dataclass
class Answers:
    """What the network answers over recordings, configuration by configuration, computed when asked for.

    `place`: 0, 1, 2 of the gate's places, 3 the whole window. The same calls as in a pipeline, so the same
    answers."""

    data: Recordings
    slow: dict[str, F32]
    fast: dict[tuple[str, int], F32]

    def __post_init__(self) -> None:
        self._features: dict[tuple[str, int, int], F32] = {}
        self._found: dict[tuple[Config, int], F32] = {}
        self._stops: dict[tuple[Config, int], F32] = {}

    def places(self, rate: int) -> tuple[int, ...]:
        """Frames at the gate's places, and of the whole window."""
        shape = model().shape
        plan = planned_frames(shape.slow.length, round(rate * shape.slow.window_s))
        asked = checkpoints(plan, 1 / shape.slow.rate, shape.fast.window_s, CHECKPOINTS)
        return (*asked, len(plan))

    def feature(self, size: str, rate: int, place: int) -> F32:
        """The slow sense's feature [n, width] at a place."""
        key = (size, rate, place)
        if key not in self._features:
            shape = model().shape
            plan = planned_frames(shape.slow.length, round(rate * shape.slow.window_s))
            plan = plan[: self.places(rate)[place]]
            self._features[key] = np.stack(
                [model().aggregate(SLOW, size, one[plan]) for one in self.slow[size]]
            )
        return self._features[key]

    def probabilities(self, config: Config, place: int = 3) -> F32:
        """[n, classes] of a configuration."""
        if (config, place) not in self._found:
            seen = self.feature(config.slow, config.rate, place)
            heard = self.fast[config.fast, config.chunk]
            pair = (config.slow, config.fast)
            self._found[config, place] = np.stack(
                [model().fuse(pair, one, other) for one, other in zip(seen, heard, strict=True)]
            )
        return self._found[config, place]

    def right(self, config: Config, place: int = 3) -> NDArray[np.bool_]:
        """Which recordings are answered rightly [n]."""
        return self.probabilities(config, place).argmax(1) == self.data.labels

    def stop(self, config: Config, place: int) -> F32:
        """How sure the gate is [n]."""
        if (config, place) in self._stops:
            return self._stops[config, place]
        seen = self.feature(config.slow, config.rate, place)
        heard = self.fast[config.fast, config.chunk]
        pair = (config.slow, config.fast)
        self._stops[config, place] = np.array(
            [model().stop(pair, one, other) for one, other in zip(heard, seen, strict=True)], np.float32
        )
        return self._stops[config, place]

    def evidence(self) -> NDArray[np.float64]:
        """s [n] of the first units."""
        chunk = model().shape.fast.units[0]
        size = model().shape.sizes[0]
        first = model().encode(FAST, size, self.data.sound[:, :chunk])
        return np.array([model().evidence(a[0], b) for a, b in zip(self.slow[size], first, strict=True)])


@functools.lru_cache(maxsize=2)
def answers(count: int, seed: int) -> Answers:
    """The network's answers over `count` recordings; what the encoders say is kept in the cache."""
    folder = cached(
        "mmedge-units",
        {"count": count, "seed": seed, "program": content_hash(NETWORK)["package"]},
        functools.partial(_encode, count, seed),
    )
    shape = model().shape
    with np.load(folder / "units.npz") as found:
        slow = {size: found[size] for size in shape.sizes}
        fast = {(size, chunk): found[f"{size}:{chunk}"] for size in shape.sizes for chunk in shape.fast.units}
    return Answers(recordings(count, seed), slow, fast)


def _encode(count: int, seed: int, goal: Path) -> None:
    data, shape = recordings(count, seed), model().shape
    made: dict[str, F32] = {}
    for size in shape.sizes:
        made[size] = np.stack([model().encode(SLOW, size, frames) for frames in data.frames])
        for chunk in shape.fast.units:
            total = -(-shape.fast.length // chunk) * chunk
            sound = np.pad(data.sound, ((0, 0), (0, total - shape.fast.length))).reshape(count, -1, chunk)
            made[f"{size}:{chunk}"] = np.stack(
                [model().aggregate(FAST, size, model().encode(FAST, size, one)) for one in sound]
            )
    np.savez(goal / "units.npz", **made)  # type: ignore[arg-type]


def test_answers(run: Run) -> Answers:
    """The answers that this run's rows are of."""
    return answers(QUICK if run.quick else TEST, run.seed % 1_000_000)


def points(share: float) -> float:
    """A share in percentage points."""
    return 100 * share
