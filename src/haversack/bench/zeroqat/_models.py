"""The small decoder of the bench: `code-draft` with outliers that change nothing, its texts, its packs.

Four channels of what every norm gives are 20 times larger and the columns that they meet 20 times smaller:
the function is the same, and few bits for inputs break as they do in large models. Texts are Python of the
standard library: what ships for calibration is learned from and tuned on, the held-out packages that ship for
evaluation are scored.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._cache import cached
from haversack.bench._store import content_hash
from haversack.bench.zeroqat._bench import FILES

I32 = npt.NDArray[np.int32]
CHANNELS, FACTOR = 4, 20.0
LENGTH, SCORED_ROWS, QUICK_ROWS = 128, 96, 24
SEEDS = (0, 1, 2)


def outlier_folder(name: str = "code-draft") -> Path:
    """The bundled model `name` with outliers, as a checkpoint folder in f32."""
    from haversack.bench.engine._models import code_folder

    folder = code_folder(name)
    inputs = {"of": name, "channels": CHANNELS, "factor": FACTOR, "by": Path(__file__).read_text()}
    return cached("zeroqat-outliers", inputs, lambda goal: _inject(folder, goal / "model")) / "model"


def _inject(folder: Path, goal: Path) -> None:
    from haversack.models._hub_write import config_text, write_folder
    from haversack.run._source import open_model
    from haversack.train.gradient._zeroqat_decoder import floats
    from haversack.train.gradient._zeroqat_smoothing import moved, places_of

    model = open_model(folder)
    source: Any = model.source
    tensors = {name: floats(model, name) for name in model.architecture.tensors()}
    rng = np.random.default_rng(24)
    for block in model.architecture.blocks:
        for place in places_of(block):
            if place.kind == "norm":
                s = np.ones(len(tensors[place.producer]), np.float32)
                s[rng.choice(len(s), CHANNELS, replace=False)] = 1 / FACTOR
                tensors.update(moved(place, tensors, s))
    listed = [
        (name, "f32", values.shape, values.nbytes, lambda values=values: [np.ascontiguousarray(values).data])
        for name, values in tensors.items()
    ]
    config = {**source.config, "torch_dtype": "float32"}
    write_folder(goal, listed, {"config.json": config_text(config)}, carry=folder)


@cache
def tokens_of(purpose: str) -> I32:
    """The text that ships for `purpose` in the tokens of `code`, whose tokenizer all bundled models share."""
    from haversack.bench.engine._models import code_folder
    from haversack.models import Tokenizer
    from haversack.models._calibration import default_text

    tokenizer = Tokenizer.of_folder(code_folder())
    text = default_text(purpose)
    pieces = [text[start : start + 16384] for start in range(0, len(text), 16384)]
    found = [np.asarray(tokenizer.encode(piece, special=False), np.int32) for piece in pieces]
    return np.concatenate(found)


def learned_texts() -> Any:
    """What is learned from, and an end of it that rates are chosen on."""
    from haversack.train._texts import split

    return split([tokens_of("calibration")])


def scored_rows(rows: int = SCORED_ROWS) -> Any:
    """Held-out texts of LENGTH + 1 tokens, spread evenly."""
    from haversack.train._texts import held_out_rows
    from haversack.train.gradient._zeroqat_decoder import Rows

    return Rows.of_texts(held_out_rows(tokens_of("evaluation"), rows, LENGTH))


def prepared(bits: Any, seed: int, **how: Any) -> Path:
    """The outlier model prepared (train/gradient/_zeroqat_prepare.py) on 64 texts drawn by `seed`, kept by
    content."""
    from haversack.models._calibration import segments
    from haversack.run._source import open_model
    from haversack.train.gradient._zeroqat_prepare import Preparing, prepare

    def make(goal: Path) -> None:
        texts = segments(learned_texts().learned, LENGTH, 64, seed)
        prepare(
            open_model(outlier_folder()),
            texts,
            Preparing(bits, seed=seed, batch=4, **how),
            goal / "prepared.pack",
        )

    inputs = {"bits": str(bits), "seed": seed, "how": how, "program": content_hash(FILES)}
    return cached("zeroqat-prepared", inputs, make) / "prepared.pack"


def decoder(path: Path, bits: Any, *, clipped: bool = True) -> Any:
    """The model or pack at `path` rounded as `bits` say; its float matrices with the clips that were
    learned, or (not `clipped`) over their whole range."""
    from haversack.core.pack import is_pack
    from haversack.run._source import open_model
    from haversack.train.gradient._zeroqat_decoder import RoundedDecoder, float_matrices
    from haversack.train.gradient._zeroqat_grid import fresh_clip
    from haversack.train.gradient._zeroqat_prepare import clips_of

    model = open_model(path)
    names = float_matrices(model)
    source: Any = model.source
    if clipped and names and is_pack(path):
        clips = clips_of(source)
    else:
        shapes = model.architecture.tensors()
        clips = {
            name: fresh_clip(shapes[name][0], shapes[name][1], bits.group) + np.float32(40) for name in names
        }
    return RoundedDecoder(model, bits, names, clips)


def perplexity(path: Path, bits: Any, rows: Any, *, clipped: bool = True) -> float:
    """exp of the mean loss on `rows`."""
    return math.exp(min(50.0, decoder(path, bits, clipped=clipped).loss(rows)))
