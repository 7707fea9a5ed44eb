"""Measures `digits` and `digits-small` and writes their cards (CARD.md).

    python reference/digits_card.py --work DIR [--data PATH]

Every number is measured by this command or read from the log of the training run in DIR.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from code_card import duration, machine
from digits_evaluate import EACH_SPEAKER, SEED, evaluate
from digits_recipe import Recipe
from haversack.core._datasets import dataset_path
from haversack.models.audio._spoken_digits import Recording, digit_strings, read_recordings
from train_digits import MODELS, NAMES, RECIPES, run_folder

LICENCE = """Weights: Creative Commons Attribution-ShareAlike 4.0 International (CC BY-SA 4.0), unlike the
rest of Haversack, because the recordings they were trained on are under it: the Free Spoken Digit Dataset by
Zohar Jackson and contributors (github.com/Jakobovski/free-spoken-digit-dataset). The NOTICE beside this
folder says so too; the licence's text: https://creativecommons.org/licenses/by-sa/4.0/legalcode"""


def parameters(folder: Path) -> int:
    """Numbers in the model's file."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - it is no mapping


def card(name: str, recipe: Recipe, recordings: list[Recording], numbers: dict[str, Any], run: Path) -> str:
    shape, schedule = recipe.shape, recipe.schedule
    trained = sum(one.split == "train" for one in recordings)
    by_speaker = ", ".join(f"{speaker} {wer:.1f}" for speaker, wer in numbers["by_speaker"].items())
    other = "digits" if name == "digits-small" else "digits-small"
    begins = ""
    if recipe.grown_from is not None:
        begins = f", grown out of\n  `{NAMES[recipe.grown_from]}` (reference/digits_grow.py)"
    speakers = len({one.speaker for one in recordings})
    errors = ", ".join(f"{numbers[kind]} {kind}" for kind in ("substitutions", "deletions", "insertions"))
    return f"""# {name}

Writes down spoken strings of English digits. A small real Whisper to try speech on without a download; its
{"larger" if other == "digits" else "smaller"} sister is `{other}`.

- Parameters: {parameters(MODELS / name):,}, stored in f16.
- Shape: Whisper, {shape.layers} layers in the encoder and {shape.layers} in the decoder, width {shape.width},
  {shape.width // 32} heads, feed-forward {shape.feed_forward}, 80 mel bands, a window of 5 s, no timestamps;
  vocabulary of 12 (ten words, two marks).
- Seed {recipe.seed}; {schedule.steps} steps of {recipe.rows} strings{begins}.
- Data: {trained:,} recordings of {speakers} speakers from the Free Spoken Digit Dataset (8 kHz, resampled
  to 16), indices 5 to 49: its official split. A string is 2 to 6 recordings of a speaker with gaps of 50 to
  200 ms, drawn anew for every step.
- **Held-out word error rate: {numbers["wer"]:.2f} %** ({numbers["words"]:,} words in {numbers["strings"]}
  strings of the recordings 0 to 4 of the same speakers, {EACH_SPEAKER} strings each, seed {SEED}; {errors}).
  By speaker: {by_speaker}.
- Trained by `reference/train_digits.py` in {duration(run)}:
  {machine()}.
- Scored by `reference/digits_evaluate.py` on the f16 weights, greedily.

## Limits
It knows these speakers and nothing but digits: other speech, noise and silence become digits too. Sound
longer than 5 s is cut into windows. Words are counted as they are written: the usual normalisation of English
text would make one number of a string.

## Licence
{LICENCE}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("reference-work"), help="folder of the training runs"
    )
    parser.add_argument("--data", type=Path, default=None, help="folder or archive of the recordings")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recordings = list(read_recordings(arguments.data or dataset_path("spoken-digits")))
    strings = digit_strings(recordings, "test", EACH_SPEAKER, SEED)
    for size, name in NAMES.items():
        numbers = evaluate(MODELS / name, strings)
        print(json.dumps({"model": name, **numbers}, indent=2))
        run = run_folder(recordings, RECIPES[size], arguments.work)
        text = card(name, RECIPES[size], recordings, numbers, run)
        (MODELS / name / "CARD.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
