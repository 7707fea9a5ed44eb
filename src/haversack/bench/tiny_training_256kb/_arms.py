"""CIFAR-10 for the networks, what does not learn computed once, and trainings of the rest.

Pictures are the JPEG files of the registry's set, scaled to 128 x 128. A seed draws its own pictures to learn
from; rates are chosen on a split of pictures that belong to no seed's set, by a grid that the note names; the
test part is looked at once for each training. What lies below the lowest layer that learns is computed in
8-bit integers for every arm alike, and kept by content.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._rows import Unavailable
from haversack.bench._store import content_hash
from haversack.bench.tiny_training_256kb._bench import MAIN, model_file
from haversack.models.graph._ir import Graph
from haversack.models.graph.training import split
from haversack.train._network import Batch, Slice, head_of
from haversack.train._slots import Learned, Plain, Settings
from haversack.train.gradient.backprop import Backprop
from haversack.train.networks._graph import GraphNetwork
from haversack.train.parameters.sparse import Scheme, convolutions, learned_channels
from haversack.train.precision.int8_qas import Int8Qas

Array = npt.NDArray[Any]
SEEDS = 3
PER_CLASS, TUNING_PER_CLASS, VALIDATION_PER_CLASS, TEST_PER_CLASS = 160, 50, 30, 150
EPOCHS, WARM_UP, ROWS = 8, 1, 32
CUTS = (20, 30, 36)
"""Convolutions below which features are kept, each computed from those below it."""
SIZE = 128
CONVS = 42
"""Of the whole network; indices of schemes count them."""
COMPUTED = ("models/graph/_*.py", "models/graph/mcu.py", "bench/tiny_training_256kb/_arms.py")


@dataclass(frozen=True)
class Pictures:
    """Rows of each set by their place in the list of files: tuning set, one set a seed, test."""

    files: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    sets: Mapping[str, npt.NDArray[np.int64]]


@functools.lru_cache(maxsize=2)
def pictures(test_per_class: int = TEST_PER_CLASS, seed: int = 0) -> Pictures:
    """Raises Unavailable where CIFAR-10 is not on this machine."""
    from haversack.core._datasets import local_path
    from haversack.formats.pictures import read_folder, unpacked

    place = local_path("cifar-10")
    if place is None:
        raise Unavailable("cifar-10 is not in the folder that HAVERSACK_DATA names")
    folder = read_folder(unpacked(place))
    labels = np.array(folder.labels, np.int64)
    held = np.array(folder.held_out, bool)
    generator = np.random.default_rng([seed, 0xC1FA])
    pools: dict[str, list[Array]] = {}
    for label in range(len(folder.classes)):
        own = generator.permutation(np.flatnonzero((labels == label) & ~held))
        sizes = [("tune", TUNING_PER_CLASS), ("validation", VALIDATION_PER_CLASS)]
        sizes += [(f"seed{number}", PER_CLASS) for number in range(SEEDS)]
        at = 0
        for name, count in sizes:
            pools.setdefault(name, []).append(own[at : at + count])
            at += count
        test = generator.permutation(np.flatnonzero((labels == label) & held))
        pools.setdefault("test", []).append(test[:test_per_class])
    return Pictures(folder.files, labels, {name: np.concatenate(rows) for name, rows in pools.items()})


@dataclass(frozen=True)
class Task:
    """The rest of a network behind a tensor that never changes, and that tensor for rows of pictures."""

    rest: Graph
    codes: Mapping[str, Array]
    labels: Mapping[str, Array]


def task(run: Run, first: int, sets: Sequence[str], drawn: Pictures | None = None) -> Task:
    """What is learned when nothing below convolution `first` of mcunet changes."""
    from haversack.models.graph.mcu import load_mcu

    rest = load_mcu(model_file(MAIN))
    places = [cut_below(rest, cut) for cut in CUTS if cut <= first]
    known = drawn or pictures()
    codes = {}
    for name in sets:
        run.say(f"features of {name}")
        codes[name] = _features(rest, places, known, known.sets[name])
    for at in places:
        rest = split(rest, at)[1]
    return Task(rest, codes, {name: known.labels[known.sets[name]] for name in sets})


def cut_below(graph: Graph, first: int) -> str:
    """The highest tensor that everything passes through below convolution `first`."""
    number = graph.ops.index(graph.convolutions()[first])
    for before in range(number - 1, -1, -1):
        name = graph.ops[before].writes[0]
        later = {each for op in graph.ops[before + 1 :] for each in op.reads}
        earlier = {each for op in graph.ops[:before] for each in op.writes} | set(graph.inputs)
        if not later & earlier:
            return name
    return graph.inputs[0]


def _features(graph: Graph, places: Sequence[str], known: Pictures, rows: Array) -> Array:
    """i8 codes of the last of `places` (none: of the input) for pictures, kept by content."""
    files = [known.files[row] for row in rows]
    inputs = {
        "graph": graph.name,
        "at": list(places),
        "files": [f"{each.parent.name}/{each.name} {each.stat().st_size}" for each in files],
        "size": SIZE,
        "program": content_hash(COMPUTED),
    }

    def make(folder: Path) -> None:
        from haversack.formats.pictures import read_picture
        from haversack.models.graph._execute import Machine

        if places:
            rest = graph
            for at in places[:-1]:
                rest = split(rest, at)[1]
            front, at = split(rest, places[-1])[0], places[-1]
            machine = Machine(front)
            below = _features(graph, places[:-1], known, rows)
            parts = (below[start : start + 16] for start in range(0, len(below), 16))
            found = [machine.run({front.inputs[0]: part})[at] for part in parts]
        else:
            seen = (read_picture(each, SIZE, SIZE).astype(np.int16) for each in files)
            found = [(each - 128).astype(np.int8)[None] for each in seen]
        np.save(folder / "codes.npy", np.concatenate(found))

    return np.load(cached("tiny-features", inputs, make) / "codes.npy")


@dataclass(frozen=True)
class Arm:
    """One way to learn. `numbers`: qas, plain (integers without scaling), float (the network in f32), head
    (nothing but the classifier)."""

    name: str
    numbers: str
    scheme: Scheme
    momentum: float
    rates: tuple[float, ...]
    latent: str = "float"


def trained(arm: Arm, work: Task, learn: str, judge: str, rate: float, head_rate: float, seed: int) -> float:
    """Share of `judge` named rightly after EPOCHS of `learn`; 0 where the loss was not finite."""
    from haversack.models.graph.training import in_floats

    graph, total = work.rest, len(convolutions(work.rest))
    inputs: dict[str, Array] = {name: work.codes[name] for name in (learn, judge)}
    if arm.numbers == "float":
        codes = graph.tensors[graph.inputs[0]].quantization
        assert codes is not None
        inputs = {
            name: ((values.astype(np.float32) - codes.zero) * np.float32(codes.scale))
            for name, values in inputs.items()
        }
    own = Scheme(arm.scheme.biases, tuple(i - (CONVS - total) for i in arm.scheme.layers), arm.scheme.ratios)
    chosen = learned_channels(graph, own)
    network = GraphNetwork(in_floats(graph) if arm.numbers == "float" else graph, arm.name)
    network.new_head(tuple(str(each) for each in range(10)), seed)
    wanted: dict[str, Slice | None] = {}
    for name, array in network.tensors().items():
        if name in chosen and arm.numbers != "head":
            channels = chosen[name]
            wanted[name] = None if channels is None else Slice(array.ndim - 1, channels)
        elif name in head_of(network):
            wanted[name] = None
    learned = Learned(wanted)
    integers = Int8Qas(scaling="off" if arm.numbers == "plain" else "on", latent=arm.latent)
    numbers: Any = Plain() if arm.numbers == "float" else integers.begin(network, learned)
    labels = work.labels[learn]
    per_epoch = len(labels) // ROWS
    settings = Settings(EPOCHS * per_epoch, ROWS, seed, numbers)
    stepper = Backprop(momentum=arm.momentum, head=head_rate / rate).begin(network, learned, settings)
    done = 0
    for epoch in range(EPOCHS):
        order = np.random.default_rng([seed, epoch]).permutation(len(labels))
        for start in range(0, per_epoch * ROWS, ROWS):
            rows = order[start : start + ROWS]
            share = scheduled(done / per_epoch)
            with np.errstate(over="ignore", invalid="ignore"):
                loss = stepper.step(Batch(inputs[learn][rows], labels[rows]), rate * share)
            if not math.isfinite(loss):
                return 0.0
            done += 1
    numbers.finish()
    found = network.logits(inputs[judge]).argmax(axis=1)
    return float((found == work.labels[judge]).mean())


def scheduled(epoch: float) -> float:
    """The rate's share: up in WARM_UP epochs, then down as a cosine."""
    if epoch < WARM_UP:
        return (epoch + 1 / 16) / (WARM_UP + 1 / 16)
    return 0.5 * (1 + math.cos(math.pi * (epoch - WARM_UP) / (EPOCHS - WARM_UP)))


@dataclass(frozen=True)
class Tuned:
    """The rates that did best on the tuning set's validation part, and every point of the grid."""

    rate: float
    head_rate: float
    grid: Mapping[tuple[float, float], float]

    def shown(self) -> str:
        """As a note has it."""
        points = ", ".join(
            f"{rate:g}/{head:g}: {100 * value:.1f}" for (rate, head), value in sorted(self.grid.items())
        )
        return f"rate {self.rate:g}, head {self.head_rate:g} of (rate/head: % on validation) {points}"


def tuned(arm: Arm, work: Task, head_rates: Sequence[float], say: Callable[[str], None]) -> Tuned:
    """Both rates chosen on a grid."""
    grid = {}
    for head_rate in head_rates:
        for rate in arm.rates:
            say(f"{arm.name}: rate {rate:g}, head {head_rate:g}")
            grid[rate, head_rate] = trained(arm, work, "tune", "validation", rate, head_rate, 1000)
    best = max(grid, key=lambda point: (grid[point], -point[0]))
    return Tuned(*best, grid)
