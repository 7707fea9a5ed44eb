"""Our own engine: f32 from the folder itself, and int8 weights (round-to-nearest) with int8 inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._cache import cached
from haversack.bench._store import content_hash
from haversack.bench.mlx_transformers_benchmark._backends import Batch, Checkpoint

F32 = npt.NDArray[np.float32]
PACKING = ("shrink/**/*.py", "kernels/_matrix.py", "models/language/*.py", "run/_encoder*.py")


class HaversackModel:
    """The engine over a folder or pack."""

    def __init__(self, source: Path) -> None:
        from haversack.run._encoder import Encoder

        self.encoder = Encoder.open(source, residency="copied")

    def run(self, batch: Batch) -> Any:
        """Hidden states of the real tokens, text after text, and where they belong."""
        from haversack.run._encode import Tokens, parts

        kept = batch.mask.astype(bool)
        texts = [
            Tokens(
                *(
                    values[row][kept[row]].astype(np.int32)
                    for values in (batch.ids, batch.types, batch.positions)
                )
            )
            for row in range(len(kept))
        ]
        return [self.encoder.hidden(texts[part]) for part in parts([len(text) for text in texts])], kept

    def finish(self, result: Any) -> None:
        """It is computed already."""

    def array(self, result: Any) -> F32:
        """Zeros where padding is."""
        hidden, kept = result
        found = np.zeros((*kept.shape, hidden[0].shape[1]), np.float32)
        found[kept] = np.concatenate(hidden)
        return found


class Haversack:
    """f32."""

    name = "haversack"
    exact = True

    def unavailable(self) -> str | None:
        """Never: the kernels are built, or importing them says how to."""
        return None

    def load(self, checkpoint: Checkpoint, threads: int) -> HaversackModel:
        """See Backend."""
        from haversack.kernels import set_threads

        set_threads(threads)
        return HaversackModel(checkpoint.folder)


class HaversackInt8(Haversack):
    """int8 weights, int8-dynamic inputs."""

    name = "haversack-int8"
    exact = False

    def load(self, checkpoint: Checkpoint, threads: int) -> HaversackModel:
        """See Backend."""
        from haversack.kernels import set_threads

        set_threads(threads)
        return HaversackModel(int8_pack(checkpoint.folder))


def int8_pack(folder: Path) -> Path:
    """`folder` packed by round-to-nearest at 8 bits with int8-dynamic activations, kept by content."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]

    def make(goal: Path) -> None:
        from haversack.core.pack import PackWriter
        from haversack.plan._enumerate import create_precision
        from haversack.plan._job import add_files
        from haversack.run._encoder_source import open_encoder
        from haversack.shrink._encoder import EncoderWalk
        from haversack.shrink._pipeline import Policy, compress

        model = open_encoder(folder)
        plan = {"precision": "round-to-nearest:bits=8", "activations": "int8-dynamic"}
        with PackWriter(goal / "int8.pack") as writer:
            compress(
                model.source,
                EncoderWalk(model.architecture, model.source),
                create_precision(plan["precision"]),
                writer,
                texts=None,
                policy=Policy(),
                folder=goal,
            )
            add_files(writer, folder)
            writer.finish(
                {
                    "architecture": dict(model.config),
                    "plan": {**plan, "pooling": model.pooling.record()},
                    "activations": plan["activations"],
                }
            )

    inputs = {"folder": str(folder.resolve()), "files": files, "program": content_hash(PACKING)}
    return cached("encoder-int8", inputs, make) / "int8.pack"
