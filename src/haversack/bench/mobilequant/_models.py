"""The bench's model: a small gated decoder trained on tinyshakespeare's characters, and its exact outliers.

Small models lack the outliers of large ones, so they are added: 2 of the 128 channels that each norm gives
are multiplied by 30 to 80 and the columns of the matrices that read them divided. What the model computes
stays (to 1e-5 of the logits' size); what a static 8-bit grid has to span grows as in large models.
"""

from __future__ import annotations

import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._cache import cache_folder, cached, content_key
from haversack.bench._rows import Unavailable
from haversack.formats.safetensors import HubFolder
from haversack.models._architecture import Architecture
from haversack.models.language import read_architecture
from haversack.shrink._source import read_tensor
from haversack.shrink._transforms import fold, pairs_of

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Tensors = dict[str, F32]

TEXT = "text/tinyshakespeare.txt"
HELD_OUT = 0.1
LENGTH = 128
SHAPE = {"width": 128, "layers": 2, "heads": 4, "key_value_heads": 4, "feed_forward": 384, "context": 256}
TRAINING = {"steps": 2000, "batch": 16, "length": LENGTH, "rate": 3e-3, "seed": 0}
OUTLIERS, SMALLEST, LARGEST = 2, 30.0, 80.0


def workshop() -> Any:
    """PyTorch on as many threads as there are cores. Raises Unavailable where it is not installed."""
    try:
        import torch
    except ImportError:
        raise Unavailable("torch is not installed; run: pip install 'haversack[workshop]'") from None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch


@functools.cache
def text() -> tuple[I32, I32, int]:
    """Characters to train on, those held out, and how many there are. Raises Unavailable without the text."""
    folder = os.environ.get("HAVERSACK_DATA")
    path = Path(folder or "") / TEXT
    if folder is None or not path.is_file():
        raise Unavailable(f"{TEXT} is not in the folder that HAVERSACK_DATA names")
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    known, tokens = np.unique(raw, return_inverse=True)
    edge = int(len(tokens) * (1 - HELD_OUT))
    numbers: I32 = tokens.astype(np.int32)
    return numbers[:edge], numbers[edge:], len(known)


def train(folder: Path) -> None:
    """Train the model and write it as a checkpoint folder."""
    torch = workshop()
    from safetensors.torch import save_file

    from haversack.models.language.llama_torch import Llama, LlamaShape

    tokens, _, known = text()
    torch.manual_seed(TRAINING["seed"])
    shape = LlamaShape(vocabulary=known, **SHAPE)
    model = Llama(shape)
    model.initialize(int(TRAINING["seed"]))
    stream = torch.from_numpy(tokens.astype(np.int64))
    steps, length = int(TRAINING["steps"]), int(TRAINING["length"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=TRAINING["rate"], weight_decay=0.1, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
    )
    generator = torch.Generator().manual_seed(int(TRAINING["seed"]))
    for _ in range(steps):
        starts = torch.randint(len(stream) - length - 1, (int(TRAINING["batch"]),), generator=generator)
        rows = torch.stack([stream[start : start + length + 1] for start in starts])
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    tensors = {name: values.detach().contiguous() for name, values in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = shape.hub_config(0) | {"torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


NAME = "mobilequant-model"
INPUTS = {"shape": SHAPE, "training": TRAINING, "text": TEXT, "held_out": HELD_OUT, "version": 1}


def trained() -> bool:
    """True when the model lies in the cache."""
    return (cache_folder() / "bench" / f"{NAME}-{content_key(INPUTS)}").is_dir()


def checkpoint() -> HubFolder:
    """The trained model's folder; trained when first asked for, some minutes on two quiet cores."""
    text()
    workshop()
    return HubFolder.open(cached(NAME, INPUTS, train))


def plain() -> tuple[Architecture, Tensors]:
    """The trained model."""
    source = checkpoint()
    architecture = read_architecture(source.config)
    return architecture, {name: read_tensor(source, name) for name in architecture.tensors()}


def with_outliers(architecture: Architecture, tensors: Tensors, seed: int = 0) -> Tensors:
    """A copy whose norms give OUTLIERS channels SMALLEST to LARGEST times as large, exactly undone after."""
    rng = np.random.default_rng(seed)
    changed = {name: values.copy() for name, values in tensors.items()}
    for block in architecture.blocks:
        for pair in pairs_of(block):
            if pair.kind == "norm":
                scale = np.ones(architecture.width)
                chosen = rng.choice(architecture.width, OUTLIERS, replace=False)
                scale[chosen] = 1 / rng.uniform(SMALLEST, LARGEST, OUTLIERS)
                fold(changed, pair, scale)
    return changed


def pieces(tokens: I32, count: int, length: int = LENGTH, seed: int = 0) -> I32:
    """`count` pieces [count, length + 1] of `tokens`, spread evenly from a drawn start."""
    span = (len(tokens) - length - 1) // count
    first = np.random.default_rng(seed).integers(max(1, span))
    starts = first + span * np.arange(count)
    return np.stack([tokens[start : start + length + 1] for start in starts])


def perplexity(logits: F32, targets: I32) -> float:
    """Of `targets` [texts, n] under `logits` [texts, n, vocabulary]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return float(np.exp(-np.take_along_axis(wide, targets[..., None].astype(np.int64), -1).mean()))
