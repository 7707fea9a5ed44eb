"""Writes litert_recordings.json beside this file: checksums of what LiteRT's reference kernels give.

Run with ai-edge-litert installed and HAVERSACK_DATA set: python tests/models/graph/record_litert.py
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np

MODELS = {
    "ad01_int8": "mlperf-tiny",
    "kws_ref_model": "mlperf-tiny",
    "pretrainedResnet_quant": "mlperf-tiny",
    "vww_96_int8": "mlperf-tiny",
    "spelling_cnn_mel_int8": "moonshine-micro",
}
GOAL = Path(__file__).with_name("litert_recordings.json")
INPUTS = 3


def codes(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any codes, the same for the same seed."""
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def checksum(values: np.ndarray) -> int:
    """Of the bytes of codes."""
    return zlib.crc32(np.ascontiguousarray(values).tobytes())


def main() -> None:
    """Checksums of every operation's result, for a few inputs of each model."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    found = {}
    for name, folder in MODELS.items():
        interpreter = Interpreter(
            str(Path(os.environ["HAVERSACK_DATA"]) / "models" / folder / f"{name}.tflite"),
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
            experimental_preserve_all_tensors=True,
            num_threads=1,
        )
        interpreter.allocate_tensors()
        entry = interpreter.get_input_details()[0]
        rows = []
        for seed in range(INPUTS):
            interpreter.set_tensor(entry["index"], codes(tuple(entry["shape"]), seed))
            interpreter.invoke()
            results = [int(op["outputs"][0]) for op in interpreter._get_ops_details()]
            rows.append([checksum(interpreter.get_tensor(index)) for index in results])
        found[name] = rows
    GOAL.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
