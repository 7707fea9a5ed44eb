"""Training methods on plain texts: what is saved loads, applies, gives the same result every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from haversack.core import index
from haversack.core.errors import UserError
from haversack.core.index import MethodEntry
from haversack.formats.safetensors import HubFolder
from haversack.models import read_architecture
from haversack.run import Engine
from haversack.train._slots import AdapterInTraining, Adapting
from haversack.train._texts import split
from haversack.train._training import Learning
from haversack.train.fit import fit

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")

ENTRIES = [
    entry
    for entry in index.methods("train", "parameters")
    if isinstance(index.create("train", "parameters", entry.name), Adapting)
]
"""What learns beside a language model's matrices; test_train_labels.py has all methods."""
TEXTS = split([np.random.default_rng(1).integers(0, 256, 1500).astype(np.int32)])
LEARNING = Learning(steps=6, rows=2, length=24, warm_up_steps=1, rate=0.02, threads=1)
TOKENS = np.random.default_rng(2).integers(0, 256, 24).astype(np.int32)

every_method = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


def choices(entry: MethodEntry) -> list[str]:
    """The method with its defaults, and with every other allowed value of each parameter."""
    found = [entry.name]
    for parameter in entry.parameters:
        others = [value for value in list(parameter.allowed or ()) if value != parameter.default]
        found += [f"{entry.name}:{parameter.name}={value}" for value in others]
    return found


every_choice = pytest.mark.parametrize("choice", [text for entry in ENTRIES for text in choices(entry)])


def logits(folder: Path) -> Any:
    with Engine.open(folder) as engine:
        rows, _ = engine.step(TOKENS, cache=engine.cache(32), want="all")
    return rows


@every_choice
def test_saved_loaded_applied(choice: str, checkpoint: Path, tmp_path: Path) -> None:
    """The engine gives for the written version what PyTorch gives for the model with what was learned."""
    from haversack.run._source import open_model
    from haversack.train._model_torch import FloatModel

    fit(checkpoint, TEXTS, tmp_path / "whole", parameters=choice, learning=LEARNING)
    fit(checkpoint, TEXTS, tmp_path / "adapter", parameters=choice, learning=LEARNING, form="adapter")
    found = logits(tmp_path / "whole")
    assert np.abs(found - logits(checkpoint)).max() > 1e-3, "nothing was learned"
    from haversack.models._adapter import read_adapter
    from haversack.train.parameters.lora_torch import Beside

    model = FloatModel(open_model(checkpoint))
    pairs = read_adapter(tmp_path / "adapter", model.architecture).pairs
    hooks = Beside(
        {n: (torch.from_numpy(p.first), torch.from_numpy(p.second), p.scale) for n, p in pairs.items()}
    )
    with torch.no_grad():
        low = model.below(model.tokens(TOKENS[None]), 0)
        states = model.normed(model.through(low, model.architecture.blocks, hooks))
        wanted = (states @ model.head.T).numpy()
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@every_method
def test_the_same_under_a_seed(entry: MethodEntry, checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fit(checkpoint, TEXTS, tmp_path / name, parameters=entry.name, learning=LEARNING)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert one == two


@every_method
def test_it_changes_nothing_before_it_learned_and_stays_above_an_anchor(
    entry: MethodEntry, checkpoint: Path
) -> None:
    architecture = read_architecture(HubFolder.open(checkpoint).config)
    method = cast(Adapting, index.create("train", "parameters", entry.name))
    assert isinstance(method, Adapting)
    learned = method.begin(architecture, 1, 0, "cpu")
    assert isinstance(learned, AdapterInTraining) and min(learned.blocks) >= 1
    numbers = sum(value.numel() for value in learned.module.parameters())
    assert numbers == method.learned_numbers(architecture, 1) > 0
    for pair in learned.pairs(dict(learned.module.named_parameters())).values():
        assert pair.block >= 1 and not np.any(pair.second @ pair.first)


@every_method
def test_an_anchor_of_all_blocks_leaves_nothing(entry: MethodEntry, checkpoint: Path) -> None:
    architecture = read_architecture(HubFolder.open(checkpoint).config)
    method = cast(Adapting, index.create("train", "parameters", entry.name))
    with pytest.raises(UserError):
        method.chosen(architecture, len(architecture.blocks))
