"""The three tables of a bundle as Parquet: their columns, writing, and reading under limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._extra import need
from haversack.collect.bundle import FRAMES_MOST, SECONDS_MOST, BundleError

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
IMU_AXES = ("ax", "ay", "az", "gx", "gy", "gz")
ROWS_MOST = {"frames.parquet": FRAMES_MOST, "imu.parquet": SECONDS_MOST * 1000, "edge.parquet": FRAMES_MOST}
HANDS_MOST = 8


@dataclass(frozen=True)
class Hand:
    """A detected hand: box corners as shares of the picture (x to the right, y down), score and contact in
    [0, 1], side 0 left or 1 right."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float
    contact: float
    side: int


def schema(name: str) -> Any:
    """The Arrow schema of one of the three tables."""
    pa = need("pyarrow")
    if name == "frames.parquet":
        return pa.schema([pa.field("t_ns", pa.int64(), False), pa.field("key", pa.bool_(), False)])
    if name == "imu.parquet":
        axes = [pa.field(axis, pa.float32(), False) for axis in IMU_AXES]
        return pa.schema([pa.field("t_ns", pa.int64(), False), *axes])
    fields = [*((part, pa.float32()) for part in ("x0", "y0", "x1", "y1", "score", "contact"))]
    hand = pa.struct(
        [*(pa.field(part, kind, False) for part, kind in fields), pa.field("side", pa.int8(), False)]
    )
    return pa.schema(
        [
            pa.field("t_ns", pa.int64(), False),
            pa.field("a", pa.float32(), False),
            pa.field("sharpness", pa.float32(), False),
            pa.field("residual_px", pa.float32(), False),
            pa.field("hands", pa.list_(pa.field("item", hand, False)), False),
        ]
    )


def write_table(path: Path, columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]]) -> None:
    """Write a table with the schema of its name; the footer is there when this returns."""
    pa, parquet = need("pyarrow"), need("pyarrow.parquet")
    kinds = schema(path.name)
    made = pa.table({field.name: pa.array(columns[field.name], field.type) for field in kinds}, schema=kinds)
    parquet.write_table(made, path, compression="snappy")


def read_table(path: Path) -> dict[str, Any]:
    """The columns of a table: arrays, and for `hands` a list of lists of Hand. Raises BundleError (`table`)
    for a file that is no such table, or has more rows than a clip can have."""
    parquet = need("pyarrow.parquet")
    pa = need("pyarrow")
    name = path.name
    try:
        with parquet.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            if not 0 <= rows <= ROWS_MOST[name]:
                raise BundleError("table", f"{name} says {rows} rows and may have {ROWS_MOST[name]}.", rows)
            expected = schema(name)
            if not file.schema_arrow.equals(expected):
                raise BundleError("table", f"{name} has other columns than {', '.join(expected.names)}.")
            table = file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise BundleError("table", f"{name} cannot be read as Parquet ({what}).") from error
    if table.num_rows != rows or any(column.null_count for column in table.columns):
        raise BundleError("table", f"{name} has empty cells or not the rows that it says.")
    found: dict[str, Any] = {}
    for column in table.column_names:
        if column == "hands":
            lists = table[column].to_pylist()
            if any(len(hands) > HANDS_MOST for hands in lists):
                raise BundleError("table", f"{name} has more than {HANDS_MOST} hands in a frame.")
            found[column] = [[Hand(**hand) for hand in hands] for hands in lists]
        else:
            found[column] = table[column].to_numpy()
    return found
