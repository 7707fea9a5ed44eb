"""The two models as they came and as packs, kept by content: their word errors, their sizes, their costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._cache import cached
from haversack.bench._rows import Outcome, Unavailable
from haversack.bench._store import content_hash
from haversack.bench.edge_asr._bench import MAKING_FILES, MODELS, Setting
from haversack.bench.edge_asr._strings import (
    EACH_SPEAKER,
    SEED,
    SetErrors,
    calibration_strings,
    set_errors,
    test_sets,
)
from haversack.core.errors import UserError
from haversack.models.audio._spoken_digits import Utterance
from haversack.shrink.bit_operations import Product, window_products


def folder_of(size: str) -> Path:
    """The folder of the model of `size`. Raises Unavailable where it is not installed."""
    from haversack.models._bundled import model_folder

    try:
        return model_folder(MODELS[size])
    except UserError as error:
        raise Unavailable(str(error)) from error


def _identity(size: str) -> list[Any]:
    folder = folder_of(size)
    return [
        content_hash((f"reference_models/{MODELS[size]}/*",)),
        sorted(path.name for path in folder.iterdir()),
    ]


def pack_of(size: str, choice: str) -> Path:
    """The model of `size` packed by the precision method `choice`, calibrated on strings of its training
    recordings."""
    inputs = {
        "model": _identity(size),
        "precision": choice,
        "program": content_hash(MAKING_FILES),
        "sound": [one.name for one in calibration_strings()],
    }

    def make(goal: Path) -> None:
        write_pack(folder_of(size), goal / "speech.pack", choice, calibration_strings())

    return cached("edge-asr", inputs, make) / "speech.pack"


def transcripts(model: Path, activations: str, strings: Sequence[Utterance]) -> list[str]:
    """What the engine writes down, a line for each string, greedily and on f32 caches."""
    from haversack.run._speech import Speech
    from haversack.run._transcribe import transcribe

    with Speech.open(model, activations=activations) as speech:
        return [transcribe(speech, np.asarray(one.samples)).text for one in strings]


def _measured(model: Path, activations: str, each: int, seed: int) -> SetErrors:
    sets = test_sets(each, seed)
    written = {name: transcripts(model, activations, strings) for name, strings in sets.items()}
    return set_errors({name: [one.text for one in strings] for name, strings in sets.items()}, written)


def float_errors(size: str, each: int | None = None, seed: int | None = None) -> SetErrors:
    """The errors of the model as it came, its f16 weights computed with in f32."""
    each, seed = each or EACH_SPEAKER, SEED if seed is None else seed
    inputs = {
        "model": _identity(size),
        "program": content_hash(MAKING_FILES),
        "strings": [each, seed, _speakers()],
    }

    def make(goal: Path) -> None:
        _write(goal, _measured(folder_of(size), "f32", each, seed))

    return _read(cached("edge-asr-float-errors", inputs, make))


def packed_errors(size: str, choice: str, activations: str) -> SetErrors:
    """The errors of the pack that `choice` gives, with activations of a type."""
    pack = pack_of(size, choice)
    inputs = {
        "pack": pack.parent.name,
        "activations": activations,
        "strings": [EACH_SPEAKER, SEED, _speakers()],
    }

    def make(goal: Path) -> None:
        _write(goal, _measured(pack, activations, EACH_SPEAKER, SEED))

    return _read(cached("edge-asr-errors", inputs, make))


def _speakers() -> list[str]:
    return sorted(test_sets(1))


def _write(goal: Path, errors: SetErrors) -> None:
    (goal / "errors.json").write_text(json.dumps(asdict(errors)), encoding="utf-8")


def _read(folder: Path) -> SetErrors:
    return SetErrors(**json.loads((folder / "errors.json").read_text(encoding="utf-8")))


def same_texts(size: str, each: int | None = None, seed: int | None = None) -> Outcome:
    """How often the engine writes the line that transformers writes, both in f32, greedily."""
    import importlib.util

    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise Unavailable(f"{name} is not installed; run: pip install 'haversack[workshop]'")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    folder = folder_of(size)
    strings = [one for few in test_sets(each or 10, SEED if seed is None else seed).values() for one in few]
    ours = transcripts(folder, "f32", strings)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    theirs = []
    with torch.inference_mode():
        for one in strings:
            features = extractor(np.asarray(one.samples), sampling_rate=16_000, return_tensors="pt")
            tokens = model.generate(features.input_features)
            theirs.append(tokenizer.decode(tokens[0], skip_special_tokens=True).strip())
    same = float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]))
    return Outcome.single(same, name="haversack", note=f"{len(strings)} strings")


# What a setting costs.


def stored_sizes(size: str, choice: str) -> int:
    """Bytes of all tensors of the pack that `choice` gives."""
    from haversack.core.pack import Pack

    return sum(entry.nbytes for entry in Pack.open(pack_of(size, choice)).tensors.values())


def counted(size: str, setting: Setting, choice: str, tokens: int) -> tuple[list[Product], list[Product]]:
    """All matrix products of a window of sound and `tokens` tokens, and those of the blocks' matrices."""
    from haversack.plan._enumerate import create_precision
    from haversack.run._speech_source import open_speech
    from haversack.shrink._pipeline import Policy, stored_kinds
    from haversack.shrink._speech import SpeechWalk

    model = open_speech(folder_of(size))
    one = model.architecture
    stored = stored_kinds(SpeechWalk(one, model.source), create_precision(choice), Policy())
    rows = one.encoder.window or 0
    blocks, others = window_products(one, stored, setting.activations, rows, tokens)
    return others + blocks, blocks


def write_pack(folder: Path, goal: Path, choice: str, strings: Sequence[Utterance]) -> None:
    """Pack the speech model in `folder` as `choice` says, calibrated on `strings` and their words."""
    from haversack.core.pack import PackWriter
    from haversack.plan._enumerate import create_precision
    from haversack.plan._job import add_files
    from haversack.run._speech_source import open_speech
    from haversack.shrink._pipeline import Policy, compress
    from haversack.shrink._speech import SpeechWalk

    model = open_speech(folder)
    with PackWriter(goal, "speech") as writer:
        compress(
            model.source,
            SpeechWalk(model.architecture, model.source),
            create_precision(choice),
            writer,
            texts=calibration_pieces(folder, strings),
            policy=Policy(),
            folder=goal.parent,
        )
        add_files(writer, folder)
        writer.add_file("preprocessor_config.json", folder / "preprocessor_config.json")
        writer.finish({"architecture": dict(model.config), "plan": {"precision": choice}})


def calibration_pieces(folder: Path, strings: Sequence[Utterance]) -> Any:
    """The `texts` of shrink's pipeline: every string as a window of sound and the tokens of its words."""
    from haversack.run._speech import Speech
    from haversack.shrink._speech import Piece, Pieces

    pieces = []
    with Speech.open(folder) as speech:
        start = [token for token in speech.rules.prompt(False) if token is not None]
        for one in strings:
            rows = speech.rows(np.asarray(one.samples))[: speech.window]
            said = speech.tokenizer.encode(one.text, special=False)
            pieces.append(Piece(rows, np.asarray([*start, *said], np.int32)))
        return Pieces(speech.architecture, pieces)
