"""What a backend is: one implementation of the same encoder over the same checkpoint, made ready and run.

A backend reads `config.json` and the tensors of a folder itself; nothing is converted for it beforehand. Its
`run` may return before the work is done (lazy, asynchronous); `finish` then ends it, inside the timer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from haversack.core.errors import unknown_name
from haversack.models.language._encoder import EncoderArchitecture

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Token numbers i64 [texts, n], padded to the longest; `mask` is 1 where a token is real; `positions` are
    rows of the position table."""

    ids: I64
    mask: I64
    types: I64
    positions: I64

    @property
    def mean_tokens(self) -> float:
        """Real tokens of a text, on average."""
        return float(self.mask.sum()) / len(self.mask)


@dataclass(frozen=True)
class Checkpoint:
    """A folder, opened: its `architecture`, hub `config` and `tensors` f32 under the architecture's names."""

    folder: Path
    architecture: EncoderArchitecture
    config: Mapping[str, Any]
    tensors: Mapping[str, F32]


class Loaded(Protocol):
    """A model made ready by a backend."""

    def run(self, batch: Batch) -> Any:
        """The last hidden states, in the backend's own form and perhaps not computed yet."""

    def finish(self, result: Any) -> None:
        """Wait until `result` is computed."""

    def array(self, result: Any) -> F32:
        """`result` as f32 [texts, n, width] in this process's memory."""


class Backend(Protocol):
    """One implementation. `exact`: it computes in f32 and must pass the parity gate."""

    name: str
    exact: bool

    def unavailable(self) -> str | None:
        """Why it cannot run here; None when it can."""

    def load(self, checkpoint: Checkpoint, threads: int) -> Loaded:
        """The model on `threads` threads."""


# Name -> (module, class). The first is the reference that all others are held against.
BACKENDS = {
    "numpy": ("_reference", "Numpy"),
    "torch-eager": ("_torch", "TorchEager"),
    "torch-compiled": ("_torch", "TorchCompiled"),
    "torch-cuda": ("_torch", "TorchCuda"),
    "torch-mps": ("_torch", "TorchMps"),
    "onnxruntime": ("_onnx", "OnnxRuntime"),
    "onnxruntime-int8": ("_onnx", "OnnxRuntimeInt8"),
    "jax": ("_others", "Jax"),
    "mlx": ("_others", "Mlx"),
    "haversack": ("_haversack", "Haversack"),
    "haversack-int8": ("_haversack", "HaversackInt8"),
    "lazy": ("_lazy", "LazyNumpy"),
    "lazy-unsynchronised": ("_lazy", "LazyUnsynchronised"),
}
REFERENCE = "numpy"
DEFAULT = (
    "numpy",
    "torch-eager",
    "torch-compiled",
    "onnxruntime",
    "onnxruntime-int8",
    "haversack",
    "haversack-int8",
)


def backend(name: str) -> Backend:
    """The backend `name`. Raises UserError, naming the nearest, for one that does not exist."""
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS, field="backends")
    module, class_name = BACKENDS[name]
    made: Backend = getattr(import_module(f"{__package__}.{module}"), class_name)()
    return made


def read_checkpoint(folder: Path) -> Checkpoint:
    """The encoder of `folder` with all its tensors in f32. Raises UserError for what is no encoder or lacks a
    tensor."""
    from haversack.kernels import Matrix, unpack
    from haversack.run._encoder_source import open_encoder
    from haversack.run._weights import bind

    model = open_encoder(folder)
    bound = bind(model.source, model.architecture.tensors())
    tensors = {name: unpack(value) if isinstance(value, Matrix) else value for name, value in bound.items()}
    return Checkpoint(folder, model.architecture, model.config, tensors)
