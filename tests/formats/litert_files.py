"""Small LiteRT files, written by the format's own library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


def made(
    *,
    inputs: int = 6,
    outputs: int = 4,
    count: int | None = None,
    scales: tuple[float, ...] = (0.01,),
    weight_zero: int = 0,
    input: int = 0,
    dtype: int = 9,
    batch: int = 1,
    activation: int = 1,
) -> bytes:
    """One dense layer in int8 with ReLU; each argument may lie."""
    flatbuffers = pytest.importorskip("flatbuffers")
    builder = flatbuffers.Builder(1024)
    weights = np.arange(count if count is not None else inputs * 4, dtype=np.int8).tobytes()
    biases = np.arange(4, dtype="<i4").tobytes()

    def vector(values: list[int], size: int, prepend: Any) -> Any:
        builder.StartVector(size, len(values), size)
        for value in reversed(values):
            prepend(value)
        return builder.EndVector()

    def ints(values: list[int]) -> Any:
        return vector(values, 4, builder.PrependInt32)

    def table(fields: list[tuple[str, Any]]) -> Any:
        """A table whose fields are (kind, value) in the order of the schema; None leaves one out."""
        builder.StartObject(len(fields))
        for slot, (kind, value) in enumerate(fields):
            if value is not None:
                if kind == "offset":
                    builder.PrependUOffsetTRelativeSlot(slot, value, 0)
                else:
                    getattr(builder, f"Prepend{kind}Slot")(slot, value, 0)
        return builder.EndObject()

    def quantization(each: tuple[float, ...], zero: int) -> Any:
        zeros = vector([zero] * len(each), 8, builder.PrependInt64)
        builder.StartVector(4, len(each), 4)
        for value in reversed(each):
            builder.PrependFloat32(value)
        found = builder.EndVector()
        return table([("offset", None), ("offset", None), ("offset", found), ("offset", zeros)])

    def tensor(
        name: str, shape: list[int], kind: int, buffer: int, each: tuple[float, ...], zero: int
    ) -> Any:
        text, sizes, codes = builder.CreateString(name), ints(shape), quantization(each, zero)
        return table(
            [("offset", sizes), ("Int8", kind), ("Uint32", buffer), ("offset", text), ("offset", codes)]
        )

    def offsets(values: list[Any]) -> Any:
        return vector(values, 4, builder.PrependUOffsetTRelative)

    tensors = offsets(
        [
            tensor("x", [batch, inputs], dtype, 0, (0.05,), 3),
            tensor("w", [4, inputs], 9, 1, scales, weight_zero),
            tensor("b", [4], 2, 2, (0.0005,), 0),
            tensor("y", [1, outputs], 9, 0, (0.1,), -128),
        ]
    )
    options = table([("Int8", activation)])
    wired = ints([input, 1, 2]), ints([3])
    op = table([("Uint32", 0), ("offset", wired[0]), ("offset", wired[1]), ("Uint8", 8), ("offset", options)])
    graph = table(
        [("offset", tensors), ("offset", ints([0])), ("offset", ints([3])), ("offset", offsets([op]))]
    )
    code = table([("Int8", 9), ("offset", None), ("Int32", None), ("Int32", 9)])
    buffers = []
    for raw in (b"", weights, biases):
        buffers.append(table([("offset", builder.CreateByteVector(raw) if raw else None)]))
    codes, graphs, stored = offsets([code]), offsets([graph]), offsets(buffers)
    root = table([("Uint32", 3), ("offset", codes), ("offset", graphs), ("offset", None), ("offset", stored)])
    builder.Finish(root, b"TFL3")
    return bytes(builder.Output())
