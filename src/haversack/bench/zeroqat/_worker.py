"""One process of the memory rows: `python -m haversack.bench.zeroqat._worker WAY PACK ROWS LENGTH GOAL`.

Ways: `read` gives the texts to the engine, one after the other, with all logits; `light` and `full` train two
steps by forward passes from a prepared pack; `adam` two steps by the way back, from the same pack. All read
the same texts in the same bits. Prints nothing; it is weighed from outside.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

BITS = (4, 4, None)


def texts(rows: int, length: int, vocabulary: int) -> Any:
    """Tokens i32 [rows, length + 1]: memory does not depend on which."""
    return np.random.default_rng(0).integers(0, vocabulary, (rows, length + 1)).astype(np.int32)


class Fixed:
    """The same texts at every step."""

    kind = "table"  # clipping and smoothing stay as they are, as in fine-tuning

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def loss(self, decoder: Any, step: int) -> float:
        return float(decoder.loss(self.rows))


def main(way: str, pack: Path, rows: int, length: int, goal: Path | None) -> None:
    if way == "read":
        from haversack.run import Engine

        with Engine.open(pack) as engine:
            for row in texts(rows, length, engine.architecture.vocabulary):
                engine.step(row[:-1], cache=engine.cache(length), want="all")
        return
    from haversack.run._source import open_model
    from haversack.train.gradient._zeroqat_decoder import Bits, RoundedDecoder, Rows, float_matrices
    from haversack.train.gradient._zeroqat_prepare import clips_of

    if way == "adam":
        import torch

        from haversack.train.gradient._zeroqat_torch import TrueGradient

    model: Any = open_model(pack)
    decoder = RoundedDecoder(model, Bits(*BITS), float_matrices(model), clips_of(model.source))
    given = Rows.of_texts(texts(rows, length, model.architecture.vocabulary))
    if way == "adam":
        true = TrueGradient(decoder)
        decoder.masters.clear()
        optimizer = torch.optim.Adam(list(true.learned.values()), lr=1e-5)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            true.loss(given).backward()
            optimizer.step()
        return
    from haversack.train.gradient.zeroqat import ZeroQat

    stepper = ZeroQat(variant=way, epochs=0).stepper(decoder, "table", 0)
    task = Fixed(given)
    for step in range(2):
        stepper.step((task, step), 1e-6)
    if goal is not None:
        from haversack.train.fit_quantized import write_trained

        write_trained(decoder, ZeroQat(variant=way, epochs=0), stepper, goal, {})


if __name__ == "__main__":
    words = sys.argv[1:]
    main(words[0], Path(words[1]), int(words[2]), int(words[3]), Path(words[4]) if len(words) > 4 else None)
