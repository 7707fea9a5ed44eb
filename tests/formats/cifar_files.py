"""CIFAR's files as their origin writes them: binary records, and the pickles of Python 2, byte by byte."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Python2:
    """Pickles as cPickle of Python 2 wrote them with protocol 2: 8-bit strings, every value kept."""

    def __init__(self) -> None:
        self.out, self.kept = io.BytesIO(), 0

    def keep(self) -> None:
        self.kept += 1
        self.out.write(
            b"q" + struct.pack("<B", self.kept) if self.kept < 256 else b"r" + struct.pack("<I", self.kept)
        )

    def number(self, value: int) -> None:
        for code, form in ((b"K", "<B"), (b"M", "<H"), (b"J", "<i")):
            try:
                self.out.write(code + struct.pack(form, value))
                return
            except struct.error:
                continue

    def text(self, value: bytes) -> None:
        short = len(value) < 256
        self.out.write(
            (b"U" + struct.pack("<B", len(value))) if short else b"T" + struct.pack("<I", len(value))
        )
        self.out.write(value)
        self.keep()

    def value(self, value: Any) -> None:
        if isinstance(value, str | bytes):
            self.text(value.encode() if isinstance(value, str) else value)
        elif isinstance(value, int):
            self.number(value)
        elif isinstance(value, list):
            self.out.write(b"]")
            self.keep()
            if value:
                self.out.write(b"(")
                for each in value:
                    self.value(each)
                self.out.write(b"e")
        elif isinstance(value, dict):
            self.out.write(b"}")
            self.keep()
            self.out.write(b"(")
            for key, each in value.items():
                self.value(key)
                self.value(each)
            self.out.write(b"u")
        else:
            self.array(value)

    def array(self, value: np.ndarray) -> None:
        assert value.dtype == np.uint8 and value.ndim == 2
        self.out.write(b"cnumpy.core.multiarray\n_reconstruct\n")
        self.keep()
        self.out.write(b"cnumpy\nndarray\n")
        self.keep()
        self.out.write(b"K\x00\x85")
        self.keep()
        self.text(b"b")
        self.out.write(b"\x87")
        self.keep()
        self.out.write(b"R")
        self.keep()
        self.out.write(b"(K\x01")
        for size in value.shape:
            self.number(size)
        self.out.write(b"\x86")
        self.keep()
        self.out.write(b"cnumpy\ndtype\n")
        self.keep()
        self.text(b"u1")
        self.out.write(b"K\x00K\x01\x87")
        self.keep()
        self.out.write(b"R")
        self.keep()
        self.out.write(b"(K\x03")
        self.text(b"|")
        self.out.write(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t")
        self.keep()
        self.out.write(b"b\x89")
        self.text(value.tobytes())
        self.out.write(b"t")
        self.keep()
        self.out.write(b"b")


def python2(value: Any) -> bytes:
    made = Python2()
    made.out.write(b"\x80\x02")
    made.value(value)
    return made.out.getvalue() + b"."


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """u8 [count, 3, 32, 32]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)


def binary_ten(folder: Path, batches: dict[str, tuple[np.ndarray, list[int]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    for name, (values, labels) in batches.items():
        records = [bytes([label]) + each.tobytes() for each, label in zip(values, labels, strict=True)]
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    return folder


def python_ten(folder: Path, batches: dict[str, tuple[np.ndarray, list[int]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"num_cases_per_batch": 10000, "label_names": list(TEN), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2(meta))
    for name, (values, labels) in batches.items():
        batch = {
            "batch_label": f"training batch {name}",
            "labels": labels,
            "data": values.reshape(len(values), -1),
            "filenames": [f"picture_s_{number:06d}.png" for number in range(len(values))],
        }
        (folder / name).write_bytes(python2(batch))
    return folder
