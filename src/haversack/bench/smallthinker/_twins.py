"""The models of this bench: two that differ in nothing but where their routers stand.

SmallThinker decoders of 4 layers, width 128, eight ReGLU experts of which a byte of text takes two, the first
layer full and without positions, the others with a window of 64. `early` routes before attention, `late`
behind it; both begin with the same weights and see the same 400 batches of Tiny Shakespeare's first nine
tenths. The last tenth is held out: its first half is what calibration sees, everything is measured on its
second half.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._cache import cache_folder, cached, content_key
from haversack.bench._harness import Run
from haversack.bench._rows import Unavailable
from haversack.bench._store import content_hash
from haversack.bench.edgemoe import _toy
from haversack.core.errors import MissingExtraError

I32 = NDArray[np.int32]
LAYERS, EXPERTS, TOP, WIDTH, INNER, WINDOW = 4, 8, 2, 128, 192, 64
SHAPE: dict[str, Any] = {
    "vocabulary": 256,
    "width": WIDTH,
    "layers": LAYERS,
    "heads": 4,
    "key_value_heads": 2,
    "head_width": 32,
    "experts": EXPERTS,
    "top": TOP,
    "feed_forward": INNER,
    "window": WINDOW,
    "context": 8192,
}
TRAINING: dict[str, Any] = {"steps": 400, "batch": (16, 128), "rate": 3e-3, "balance": 0.01, "seed": 7}
TWINS = ("early", "late")
PIECE, CALIBRATION_PIECES = 512, 32


def inputs(name: str) -> dict[str, Any]:
    """What a trained twin depends on."""
    return {"shape": SHAPE, **TRAINING, "twin": name}


def trained(run: Run) -> None:
    """Raises Unavailable in a quick run that would have to train the twins."""
    made = [cache_folder() / "bench" / f"smallthinker-{name}-{content_key(inputs(name))}" for name in TWINS]
    if run.quick and not all(one.is_dir() for one in made):
        raise Unavailable("the twins of this bench are not trained yet; a full run does that")


@cache
def folder(name: str) -> Path:
    """A twin as a folder of the hub's own format, made once."""

    def make(goal: Path) -> None:
        try:
            from haversack.bench.smallthinker._twins_torch import train
            from haversack.models.language.smallthinker_torch import SmallThinkerShape
        except ImportError as error:
            raise MissingExtraError("the models of this bench", "torch", "workshop") from error
        text, _, _ = parts()
        train(goal / "twin", SmallThinkerShape(**SHAPE), text, early=name == "early", **TRAINING)

    try:
        return cached(f"smallthinker-{name}", inputs(name), make) / "twin"
    except MissingExtraError as error:
        raise Unavailable(str(error)) from error


parts = _toy.parts
"""Tokens to train on, to calibrate with, to measure on. Raises Unavailable where the text is not at hand."""


def calibration() -> I32:
    """What calibration sees: i32 [pieces, length]."""
    _, seen, _ = parts()
    return seen[: CALIBRATION_PIECES * PIECE].reshape(CALIBRATION_PIECES, PIECE)


def prompts(count: int, length: int, seed: int) -> list[I32]:
    """`count` beginnings of `length` bytes from the part that is measured on."""
    _, _, later = parts()
    starts = np.random.default_rng(seed).integers(0, len(later) - length, count)
    return [later[at : at + length] for at in starts]


def pack(name: str, precision: str, structure: str = "none") -> Path:
    """A twin packed, its experts matrix by matrix; kept by content."""
    from haversack.bench.smallthinker._bench import FILES

    source = folder(name)
    made_of = {
        "precision": precision,
        "structure": structure,
        "program": content_hash(FILES[1:]),
        "model": source.parent.name,
    }

    def make(goal: Path) -> None:
        from haversack.core.pack import PackWriter
        from haversack.formats.safetensors import HubFolder
        from haversack.models import read_architecture
        from haversack.models._checkpoint import checkpoint
        from haversack.plan._structure import Structures
        from haversack.shrink._language import LanguageWalk
        from haversack.shrink._pipeline import Policy, compress

        opened: Any = HubFolder.open(source)
        config = opened.config
        architecture = read_architecture(config)
        opened = checkpoint(opened, architecture)
        walk = LanguageWalk(architecture)
        method = Structures(walk, opened).compression(precision, structure)
        with PackWriter(goal / "twin.pack") as writer:
            compress(
                *(opened, walk, method, writer),
                texts=calibration(),
                policy=Policy(output="as-blocks", embedding="f32"),
                folder=goal,
                matrices=True,
            )
            writer.finish({"architecture": config, "plan": {"precision": precision}})

    return cached("smallthinker-pack", made_of, make) / "twin.pack"
