"""Word errors of a Whisper of digits on strings of recordings that it never heard.

    python reference/digits_evaluate.py FOLDER... [--data PATH] [--each-speaker N] [--seed N]

Greedy decoding by transformers on the f16 weights; errors are counted by words (jiwer), over all strings and
by speaker. The digits' words are compared as they are: the usual normalisation of English would write a
string as one number, and count its words as one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from tokenizers import Tokenizer
from transformers import WhisperForConditionalGeneration

from digits_recipe import WINDOW_S, feature_extractor
from haversack.core._datasets import dataset_path
from haversack.models.audio._spoken_digits import RATE, Utterance, digit_strings, read_recordings

EACH_SPEAKER, SEED, ROWS = 40, 2026, 50


def transcribe(folder: Path, strings: Sequence[Utterance]) -> list[str]:
    """What the model writes down, a line for each string."""
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    extractor = feature_extractor()
    lines = []
    for start in range(0, len(strings), ROWS):
        sounds = [numpy.asarray(one.samples) for one in strings[start : start + ROWS]]
        features: Any = extractor(sounds, sampling_rate=RATE, return_tensors="pt").input_features
        assert features.shape[-1] == 100 * WINDOW_S
        with torch.no_grad():
            tokens = model.generate(features)
        lines += [tokenizer.decode(row.tolist()) for row in tokens]
    return lines


def evaluate(folder: Path, strings: Sequence[Utterance]) -> dict[str, Any]:
    """Word error rates in per cent, over all and by speaker, and what was counted."""
    import jiwer

    written = transcribe(folder, strings)
    said = [one.text for one in strings]
    by_speaker = {}
    for speaker in sorted({one.speaker for one in strings}):
        own = [at for at, one in enumerate(strings) if one.speaker == speaker]
        by_speaker[speaker] = 100 * jiwer.wer([said[at] for at in own], [written[at] for at in own])
    counted = jiwer.process_words(said, written)
    return {
        "words": sum(len(line.split()) for line in said),
        "strings": len(said),
        "wer": 100 * counted.wer,
        "substitutions": counted.substitutions,
        "deletions": counted.deletions,
        "insertions": counted.insertions,
        "by_speaker": by_speaker,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=None, help="folder or archive of the recordings")
    parser.add_argument("--each-speaker", type=int, default=EACH_SPEAKER)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    arguments = parser.parse_args()
    recordings = read_recordings(arguments.data or dataset_path("spoken-digits"))
    strings = digit_strings(recordings, arguments.split, arguments.each_speaker, arguments.seed)
    for folder in arguments.folders:
        print(json.dumps({"model": folder.name, **evaluate(folder, strings)}), flush=True)


if __name__ == "__main__":
    main()
