"""Measures `events` as it is stored and writes its card.

python reference/events_card.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from haversack.models.streams._events import HARD_DB, make
from haversack.models.streams._folder import PHOTOS, WEIGHTS, read_photos
from haversack.models.streams._model import FAST, SLOW, StreamsModel
from haversack.models.streams._units import planned_frames
from train_events import GOAL, HELD_OUT, PARTS, PICTURES, TEST

JUDGED = 600
CONFIGS = (("small", 20, "small", 400), ("medium", 25, "medium", 400), ("large", 30, "large", 400))

CARD = """# events

Tells twelve signalled words apart by a camera and a microphone: a word is said within half a second, over
another voice, and shown within a second as a mask over a photograph. A small real network for
`haversack sense pipeline`; the recordings are made by `models/streams/_events.py`, so their truth is exact.

- Parameters: {parameters:,}, stored in f16 ({weights:,} bytes): three encoders of frames (32 x 32), three of
  chunks of sound (8 kHz), the temporal aggregation of each, nine fusions, the accuracy predictor, the gate.
- Data: 4,000 made recordings over six photographs; 2,000 for the accuracy table, its predictor and the gate,
  2,000 for the gate and its cut ({cut}), each over two other photographs. Seeds {seeds}.
- **Accuracy on {judged} recordings that nothing was trained or chosen on**, by configuration (encoder:frames
  a second:encoder:samples a chunk); chance is 8.3 %:
{accuracy}
- Of the last, {hard} where the word is hard to hear (below {db:g} dB), {easy} elsewhere.
- Trained by `reference/train_events.py`, about fifteen minutes of computing on one core; measured by
  `reference/events_card.py` on the f16 weights.

## Limits
It knows these words, this synthesizer and this mask, nothing of real speech or lips.

## Licence
Weights: Apache License 2.0, like the rest of Haversack; trained on generated data. `photos.safetensors` holds
eight pictures that scikit-image ships, grey and 128 pixels wide, all CC0 or public domain: {pictures}.
"""


def measure(model: StreamsModel, folder: Path) -> tuple[dict[str, float], float, float]:
    """(accuracy of each configuration, of the last where it is hard to hear, elsewhere)."""
    data = make(TEST, PARTS["test"], read_photos(folder / PHOTOS)[HELD_OUT:])
    found: dict[str, float] = {}
    for slow, rate, fast, chunk in CONFIGS:
        right = []
        plan = planned_frames(30, rate)
        for at in range(JUDGED):
            seen = model.aggregate(SLOW, slow, model.encode(SLOW, slow, data.frames[at][plan]))
            heard = model.aggregate(FAST, fast, model.encode(FAST, fast, data.sound[at].reshape(-1, chunk)))
            right.append(int(model.fuse((slow, fast), seen, heard).argmax()) == data.labels[at])
        found[f"{slow}:{rate}:{fast}:{chunk}"] = float(np.mean(right))
    answers, hard = np.array(right), data.noise_db[:JUDGED] < HARD_DB
    return found, float(answers[hard].mean()), float(answers[~hard].mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=GOAL, help="folder of the model")
    folder = parser.parse_args(arguments).out
    model = StreamsModel.open(folder)
    accuracy, hard, easy = measure(model, folder)
    text = CARD.format(
        parameters=sum(array.size for array in model.tensors.values()),
        weights=(folder / WEIGHTS).stat().st_size,
        cut=model.shape.gate_cut,
        seeds=", ".join(str(seed) for seed in PARTS.values()),
        judged=JUDGED,
        accuracy="\n".join(f"  - {name} {100 * share:.1f} %" for name, share in accuracy.items()),
        hard=f"{100 * hard:.1f} %",
        easy=f"{100 * easy:.1f} %",
        db=HARD_DB,
        pictures=", ".join(PICTURES),
    )
    (folder / "CARD.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
