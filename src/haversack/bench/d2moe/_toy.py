"""The model of this bench: EdgeMoE's (bench/edgemoe/_toy.py), of whose experts each byte takes two.

The last tenth of the text is held out as there: its first half is what calibration and the bit routers'
training see, its second half is what everything is measured on.
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
from haversack.bench.edgemoe import _toy as edgemoe
from haversack.core.errors import MissingExtraError

I32 = NDArray[np.int32]
LAYERS, EXPERTS, TOP = edgemoe.LAYERS, edgemoe.EXPERTS, 2
CONFIG: dict[str, Any] = {**edgemoe.CONFIG, "num_experts_per_tok": TOP}
NAME = "d2moe-toy"
INPUTS = {**edgemoe.INPUTS, "config": CONFIG}
TARGET_BITS = 3.0
NESTED = "d2moe"
ROUTED = f"d2moe:compensate=middle,target_bits={TARGET_BITS},capacity=.3/.4/.3,steps=100"
"""The error of the level that most tokens read is spread."""
COPIES = "d2moe:layout=copies"
INT4 = "edgemoe:bits=4"
INT8 = "edgemoe:bits=8"
STATIC = "edgemoe"
EXACT = "edgemoe:bits=32,rest=f32"


def trained(run: Run) -> None:
    """Raises Unavailable in a quick run that would have to train the model."""
    made = cache_folder() / "bench" / f"{NAME}-{content_key(INPUTS)}"
    if run.quick and not made.is_dir():
        raise Unavailable("the model of this bench is not trained yet; a full run does that")


@cache
def folder() -> Path:
    """The trained model as a folder of the hub's own format, made once."""
    try:
        return cached(NAME, INPUTS, lambda goal: edgemoe.train(goal, CONFIG)) / "toy"
    except MissingExtraError as error:
        raise Unavailable(str(error)) from error


def pack(precision: str) -> Path:
    """The model packed with `precision`, calibrated on the calibration part, kept by content."""
    from haversack.bench.d2moe._bench import FILES

    source = folder()
    inputs = {
        "precision": precision,
        "pieces": [edgemoe.CALIBRATION_PIECES, edgemoe.PIECE],
        "program": content_hash([file for file in FILES if file.startswith(("shrink", "core"))]),
        "model": source.parent.name,
    }

    def make(goal: Path) -> None:
        try:
            edgemoe.write_pack(source, goal, precision)
        except MissingExtraError as error:
            raise Unavailable(str(error)) from error

    return cached("d2moe-pack", inputs, make) / "toy.pack"
