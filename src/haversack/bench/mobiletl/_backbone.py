"""The backbone that the bench transfers: `mobilenetv3_tiny`, pretrained on half of CIFAR-10's classes.

Trained once by the bench (five to eight minutes on two quiet cores) and kept in the cache; never shipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from haversack.bench._cache import cached
from haversack.bench._store import content_hash
from haversack.bench.mobiletl import _data

VARIANT = "mobilenetv3_tiny"
FILES = (
    "models/vision/_inverted_residual_torch.py",
    "models/vision/_lean_torch.py",
    "models/vision/_pretraining_torch.py",
    "models/vision/_record.py",
    "models/vision/mobilenetv3.py",
)


def backbone(say: Callable[[str], None] = lambda text: None) -> Path:
    """The backbone's checkpoint folder, in timm's form; beside it `card.json` with its held-out accuracy.
    Raises Unavailable without data."""
    from haversack.models.vision._pretraining_torch import Pretraining

    how = Pretraining()
    inputs = {
        "variant": VARIANT,
        "how": asdict(how),
        "classes": _data.BEFORE,
        "pictures": [_data.TRAIN, _data.TEST],
        "program": content_hash(FILES)["package"],
    }
    return cached("mobiletl-backbone", inputs, lambda goal: _make(goal, say))


def _make(goal: Path, say: Callable[[str], None]) -> None:
    from haversack.models.vision import mobilenetv3
    from haversack.models.vision._folder import write_checkpoint
    from haversack.models.vision._pretraining_torch import Pretraining, accuracy, module_of, pretrain

    train, test = _data.read(_data.BEFORE)
    record = mobilenetv3.record(VARIANT).with_classes(_data.BEFORE)
    tensors = pretrain(record, train.pictures, train.labels, Pretraining(), say)
    found = accuracy(module_of(record, tensors), test.pictures, test.labels)
    write_checkpoint(goal, record, tensors)
    card = {"held_out_accuracy": found, "pictures": len(train)}
    (goal / "card.json").write_text(json.dumps(card) + "\n", encoding="utf-8")
