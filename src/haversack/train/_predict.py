"""What a trained network says of one input: its classes with their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from haversack.core.errors import UserError
from haversack.train._delta import apply_delta, read_delta
from haversack.train._examples import mesh_inputs, picture_inputs, takes_meshes, tokens_of
from haversack.train._network import F32, Network, Pictures, Tokens
from haversack.train.networks._open import kind_of, open_network


@dataclass(frozen=True)
class Answer:
    """The classes of one input, the likeliest first."""

    input: str
    classes: tuple[tuple[str, float], ...]


def is_network(model: str) -> bool:
    """Whether `model` is a network that a kind of train/networks/ recognises, other than a language model."""
    return kind_of(Path(model)) not in (None, "language")


def open_with_delta(model: str, delta: Path | None) -> Network:
    """The network with `delta` laid over it. Raises UserError where they do not belong together."""
    network = open_network(model)
    if delta is not None:
        found = read_delta(delta)
        apply_delta(network, found, str(delta))
        network.classes = found.entry.classes
    return network


def probabilities(logits: F32) -> F32:
    """The softmax of each row."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    found: F32 = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


def answers(network: Network, given: Sequence[str], top: int) -> list[Answer]:
    """What `network` says of each picture or mesh (by its path) or text, `top` classes each.

    Raises DamagedFileError for a broken picture or mesh, UserError for a network that takes none of these.
    """
    form = network.form
    found = []
    for one in given:
        if isinstance(form, Pictures):
            inputs = picture_inputs(Path(one), form)
        elif isinstance(form, Tokens):
            inputs = tokens_of([one], form)
        elif takes_meshes(form):
            inputs = mesh_inputs(Path(one), form)
        else:
            raise UserError(f"{network.name} takes measured values, no picture and no text.", field="model")
        row = probabilities(network.logits(inputs))[0]
        names = network.classes or tuple(str(number) for number in range(len(row)))
        best = sorted(range(len(row)), key=lambda number: -row[number])[:top]
        found.append(Answer(one, tuple((names[number], float(row[number])) for number in best)))
    return found
