"""Every training method on every network here that it serves: a delta over its base is what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.formats.test_mcu_pickle import small as small_mcu_network
from tests.formats.test_mcu_pickle import write as write_mcu_pickle

from haversack.core import index
from haversack.core._record import DeltaEntry
from haversack.core.errors import UserError
from haversack.core.index import MethodEntry
from haversack.train._choice import schemes
from haversack.train._delta import apply_delta, read_delta, taken, write_delta
from haversack.train._examples import Examples
from haversack.train._labelled import Lessons, Training
from haversack.train._network import Network, Pictures, identity, numbers_of
from haversack.train._slots import Gradient, Parameters, Precision
from haversack.train.networks._open import open_network

pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")

SLOTS = ("parameters", "gradient", "precision")
PROTOCOLS: dict[str, Any] = {"parameters": Parameters, "gradient": Gradient, "precision": Precision}
ENTRIES = [entry for slot in SLOTS for entry in index.methods("train", slot)]
WHOLE_PACKS = {"zeroqat"}
"""Methods whose outcome is a pack and no delta: tests/train has how those are kept."""
Opener = Callable[[], Network]

every_method = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.slot}-{entry.name}")


@pytest.fixture(scope="module")
def networks(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Opener]:
    """Ways to open a language model with a classifier, a MobileNet, an int8 graph, and LeNet-5 in floats and
    in integers."""
    folder = tmp_path_factory.mktemp("networks")
    places = {
        "language": checkpoint,
        "mobilenet": small_mobilenet(folder / "mobilenet"),
        "graph": write_mcu_pickle(folder / "graph.pkl", small_mcu_network()),
    }
    for numbers in ("f32", "int8"):
        places[numbers] = folder / numbers
        places[numbers].mkdir()
        config = {"network": "lenet5", "classes": ["a", "b", "c"], "numbers": numbers}
        (places[numbers] / "network.json").write_text(json.dumps(config))

    def opener(place: Path) -> Opener:
        def opened() -> Network:
            network = open_network(place)
            if network.classes is None:
                network.new_head(("a", "b", "c"), 0)
            return network

        return opened

    return {name: opener(place) for name, place in places.items()}


def small_mobilenet(place: Path) -> Path:
    """For pictures of 16 pixels, its weights drawn so that every tensor matters."""
    from haversack.models.vision._folder import write_checkpoint
    from haversack.models.vision.mobilenetv3 import record

    small = replace(record("mobilenetv3_tiny").with_classes(("a", "b", "c")), size=16)
    drawn = np.random.default_rng(6)
    tensors = {}
    for name, shape in small.tensors().items():
        scale = name.endswith(("running_var", "norm.weight"))
        deviation = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2
        values = drawn.uniform(0.5, 1.5, shape) if scale else drawn.normal(0, deviation, shape)
        tensors[name] = values.astype(np.float32)
    write_checkpoint(place, small, tensors)
    return place


def rows_for(network: Network) -> Examples:
    drawn = np.random.default_rng(0)
    labels = drawn.integers(0, 3, 12).astype(np.int64)
    form = network.form
    if isinstance(form, Pictures):
        inputs = drawn.integers(0, 256, (12, form.height, form.width, form.channels)).astype(np.uint8)
    else:
        inputs = drawn.integers(0, 200, (12, 16)).astype(np.int32)
    rows = np.arange(12)
    return Examples(("a", "b", "c"), labels, rows[:8], rows[8:], lambda at: inputs[at], tuple(map(str, rows)))


def schemes_for(entry: MethodEntry, opened: Opener) -> list[dict[str, str]]:
    """The first ways of the method on a network, each with others that the planner would put beside it."""
    made: Any = index.create("train", entry.slot, entry.name)
    found = []
    for way in made.offers(opened())[:2]:
        given = {slot: way if slot == entry.slot else None for slot in SLOTS}
        found += [scheme.slots for scheme in schemes(opened, 0, 4, 3, given)[:1]]
    return found


def trained(opened: Opener, slots: dict[str, str], folder: Path, stop: int | None = None) -> Training:
    network = opened()
    methods: list[Any] = [index.create("train", slot, slots[slot]) for slot in SLOTS]
    lessons = Lessons(rate=methods[1].usual_rate, epochs=2, batch=4, seed=3, threads=1)
    training = Training(network, *methods, lessons, rows_for(network))
    training.run(folder, stop_after=stop)
    return training


def test_every_method_is_of_its_slot() -> None:
    for entry in ENTRIES:
        assert isinstance(index.create("train", entry.slot, entry.name), PROTOCOLS[entry.slot]), entry.name


@every_method
def test_trained_saved_loaded_applied(
    entry: MethodEntry, networks: dict[str, Opener], tmp_path: Path
) -> None:
    """A delta over a fresh base computes what the trained network computes, twice the same, and a training
    that was broken off ends with the same numbers."""
    if entry.name in WHOLE_PACKS:
        return
    tried = 0
    for name, opened in networks.items():
        for number, slots in enumerate(schemes_for(entry, opened)):
            folders = [tmp_path / f"{name}-{number}-{part}" for part in ("whole", "broken")]
            for folder in folders:
                folder.mkdir()
            training = trained(opened, slots, folders[0])
            trained(opened, slots, folders[1], stop=2)
            again = trained(opened, slots, folders[1])
            for one in (training, again):
                one.numbers.finish()
            assert identity(again.network) == identity(training.network), slots
            base = opened()
            record = DeltaEntry(
                base_name=base.name,
                base_sha256=identity(base),
                classes=("a", "b", "c"),
                new_head=False,
                slots=slots,
                seed=3,
            )
            delta = taken(training.network, training.learned, record)
            goal = tmp_path / f"{name}-{number}.delta"
            write_delta(goal, delta, [], {})
            apply_delta(base, read_delta(goal))
            inputs = rows_for(base).read(np.arange(12))
            assert (base.logits(inputs) == training.network.logits(inputs)).all(), slots
            other = opened()
            next(iter(other.tensors().values())).reshape(-1)[0] += 1
            with pytest.raises(UserError, match="another network"):
                apply_delta(other, read_delta(goal))
            tried += 1
    assert tried, f"{entry.name} serves none of these networks; add one that it serves"


@every_method
def test_what_it_plans_names_what_it_holds(entry: MethodEntry, networks: dict[str, Opener]) -> None:
    for opened in networks.values():
        for slots in schemes_for(entry, opened)[:1]:
            network = opened()
            learned = index.create("train", "parameters", slots["parameters"]).prepare(network, 0)  # type: ignore[attr-defined]
            assert numbers_of(network, learned.wanted) > 0
            assert set(learned.wanted) <= set(network.tensors())
            plan = index.create("train", "gradient", slots["gradient"]).plan(network, learned, 4)  # type: ignore[attr-defined]
            assert plan and all(isinstance(nbytes, int) and nbytes >= 0 for _, nbytes in plan)
