"""Writes litert_recordings.json and litert_softmax.json beside this file: checksums of what LiteRT's
reference kernels give for networks, and for softmax alone.

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
SOFTMAX = GOAL.with_name("litert_softmax.json")
SCALES = (0.01, 0.05, 0.1447, 0.5, 1.0, 1.999, 3.0)


def codes(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any codes, the same for the same seed."""
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def checksum(values: np.ndarray) -> int:
    """Of the bytes of codes."""
    return zlib.crc32(np.ascontiguousarray(values).tobytes())


def logits(scale: float) -> np.ndarray:
    """Rows [40_000, 10] of codes whose softmax has several numbers that are not 0."""
    drawn = np.random.default_rng(7).normal(0, 2 / scale, (40_000, 10))
    return np.clip(np.rint(drawn), -128, 127).astype(np.int8)


def softmax_model(scale: float) -> bytes:
    """A LiteRT model of one softmax over 10 codes."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, scale: float, zero: int) -> object:
        codes = schema.QuantizationParametersT()
        codes.scale, codes.zeroPoint = np.array([scale], np.float32), np.array([zero], np.int64)
        made = schema.TensorT()
        made.name, made.shape, made.type = name.encode(), np.array([1, 10], np.int32), schema.TensorType.INT8
        made.buffer, made.quantization = 0, codes
        return made

    code, op, options, part, model = (
        getattr(schema, name)()
        for name in ("OperatorCodeT", "OperatorT", "SoftmaxOptionsT", "SubGraphT", "ModelT")
    )
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SOFTMAX
    code.version, options.beta = 2, 1.0
    op.opcodeIndex, op.inputs, op.outputs = 0, np.array([0], np.int32), np.array([1], np.int32)
    op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.SoftmaxOptions, options
    part.tensors = [tensor("x", scale, 0), tensor("y", 1 / 256, -128)]
    part.inputs, part.outputs, part.operators = op.inputs, op.outputs, [op]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [part]
    model.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def record_softmax() -> None:
    """A checksum for each scale."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    found = {}
    for scale in SCALES:
        interpreter = Interpreter(
            model_content=softmax_model(scale),
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
            num_threads=1,
        )
        interpreter.allocate_tensors()
        source, goal = (
            each()[0]["index"] for each in (interpreter.get_input_details, interpreter.get_output_details)
        )
        rows = []
        for row in logits(scale):
            interpreter.set_tensor(source, row[None])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(goal)[0].copy())
        found[str(scale)] = checksum(np.array(rows))
    SOFTMAX.write_text(json.dumps(found) + "\n", encoding="utf-8")


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
    record_softmax()


if __name__ == "__main__":
    main()
