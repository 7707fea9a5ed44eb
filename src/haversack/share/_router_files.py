"""A learned router is one safetensors file: its numbers, and a JSON record of what it is in the header.

The record names the form of the router, its threshold, the pair of models it was learned on and how it did.
Nothing of a file is run; what is read is checked against what its form needs.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.safetensors import SafetensorsFile, write_safetensors
from haversack.share._routing import Router

RECORD = "haversack.router"
VERSION = 1
MODULES = {"query": "haversack.share.query_routers", "step": "haversack.share.hera"}
"""Which module reads the routers of a kind: its `router_of(record, tensors, path)`."""

Tensors = dict[str, NDArray[Any]]
_KINDS = {"f32": np.float32, "i32": np.int32, "u8": np.uint8}


def save_router(path: str | os.PathLike[str], record: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write a router atomically. `record` has kind, form, threshold and whatever its form needs.

    Raises UserError when it cannot be written, ValueError for a record without these.
    """
    if not {"kind", "form", "threshold"} <= set(record) or record["kind"] not in MODULES:
        raise ValueError("a router's record has kind, form and threshold")
    text = json.dumps({**record, "version": VERSION}, allow_nan=False)
    listed = []
    for name, value in tensors.items():
        array = np.ascontiguousarray(value)
        kind = next((kind for kind, dtype in _KINDS.items() if array.dtype == dtype), None)
        if kind is None:
            array, kind = array.astype(np.float32), "f32"
        listed.append((name, kind, array.shape, array.tobytes()))
    write_safetensors(path, listed, {RECORD: text})


def read_router(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Tensors]:
    """(record, tensors) of a router's file. Raises UserError when it is absent, DamagedFileError when it does
    not hold: no router, of a newer version, numbers that are none."""
    file = SafetensorsFile.open(path)
    try:
        record = json.loads(file.metadata[RECORD])
    except (KeyError, ValueError, RecursionError) as error:
        raise DamagedFileError(path, "it is no router; make one with: haversack share learn") from error
    if not isinstance(record, dict) or record.get("kind") not in MODULES:
        raise DamagedFileError(path, "it is a router of an unknown kind")
    if record.get("version") != VERSION:
        said = record.get("version")
        raise UserError(
            f"{path} is a router of version {said}; this program reads {VERSION}.", field="router"
        )
    threshold = record.get("threshold")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise DamagedFileError(path, "its threshold is no number")
    tensors = {}
    for name, entry in file.tensors.items():
        dtype = _KINDS.get(entry.kind)
        if dtype is None:
            raise DamagedFileError(path, f"its tensor {name[:80]} is of the unknown type {entry.kind}")
        array = np.frombuffer(file.bytes(name), dtype).reshape(entry.shape).copy()
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise DamagedFileError(path, f"its tensor {name[:80]} holds numbers that are none")
        tensors[name] = array
    return record, tensors


def load_router(path: str | os.PathLike[str]) -> tuple[Router, float, dict[str, Any]]:
    """(router, threshold, record) of a file. Raises UserError and DamagedFileError as `read_router`."""
    record, tensors = read_router(path)
    module = importlib.import_module(MODULES[record["kind"]])
    router: Router = module.router_of(record, tensors, Path(path))
    return router, float(record["threshold"]), record
