"""Drafts of the bench that share no anchor: whole Llamas of the draft's shape, distilled from one version.

The same loss, texts, optimizer and steps as FlexSpec's bridge, but everything learns: embedding, blocks,
norms. A draft begins at random, as FlexSpec's does before its bridge learns, or as another one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from haversack.formats.safetensors import HubFolder, write_safetensors
from haversack.models._hub_write import CARRIED
from haversack.models.language.llama_torch import Llama, LlamaShape
from haversack.run._source import open_model
from haversack.run.export._tensors import numbers
from haversack.train._losses_torch import divergence
from haversack.train._model_torch import FloatModel, run_trainer
from haversack.train._texts import Rows, Texts
from haversack.train._training import Learning


def loaded(folder: Path, shape: LlamaShape) -> Llama:
    """A Llama of `shape` with the tensors of `folder`."""
    model, found = Llama(shape), open_model(folder)
    state = {
        name: torch.from_numpy(np.concatenate(list(numbers(found.source, name))))
        for name in model.state_dict()
    }
    model.load_state_dict(state)
    return model


def distilled(
    goal: Path,
    target: Path,
    config: dict[str, Any],
    texts: Texts,
    learning: Learning,
    *,
    start: Path | None,
    temperature: float,
    mse: float,
) -> None:
    """Train a draft with `config` on what `target` says and write it at `goal`; it begins as `start`, or at
    random."""
    if learning.threads is not None:
        torch.set_num_threads(learning.threads)
    teacher = FloatModel(open_model(target), learning.compute)
    shape = LlamaShape.from_hub_config(config)
    student = Llama(shape) if start is None else loaded(start, shape)
    if start is None:
        student.initialize(learning.seed)
    rows = Rows(texts.learned, learning.rows, learning.length, learning.seed)

    def loss(step: int) -> Tensor:
        tokens = teacher.tokens(rows.at(step)[:, :-1])
        with teacher.computing():
            wanted = teacher.normed(teacher.below(tokens, len(teacher.architecture.blocks)))
            made = student.hidden(tokens).flatten(0, 1).float()
        head, compute = student.model.embed_tokens.weight, teacher.compute
        found = divergence(made, head, wanted, teacher.head, temperature=temperature, compute=compute)
        return found + mse * (made - wanted).square().mean()

    trainer, _ = run_trainer(student, learning, goal, loss, muon=True)
    (goal / "state.pt").unlink()
    tensors = [
        (name, "f16", tuple(value.shape), value.detach().numpy().astype("<f2").tobytes())
        for name, value in trainer.average.items()
    ]
    write_safetensors(goal / "model.safetensors", tensors)
    (goal / "config.json").write_text(json.dumps({**HubFolder.open(target).config, **config}))
    for name in CARRIED:
        if (target / name).is_file():
            (goal / name).write_bytes((target / name).read_bytes())
