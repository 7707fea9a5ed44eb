"""Teachers that were trained before: of another split pack, or a published detector's checkpoint.

A checkpoint is a file of safetensors, or PyTorch's own kind (.pth, .pt), which is read as tensors alone: a
file that would run anything is refused; or a folder with one of them. Wrappers that training scripts put
about a state dict are taken off.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError
from haversack.models.vision._detector_record import Detector, columns_of, family_of, named, read_detector
from haversack.share._split_data import SplitData
from haversack.share._split_pack import bundled, rounded

F32 = NDArray[np.float32]
ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
WRAPPERS = ("state_dict_ema", "state_dict", "model_ema", "model")
LARGEST = 4 << 30
JUDGED = 200
"""Pictures held out that a published detector's modes are measured on, at most."""


@dataclass(frozen=True)
class Published:
    """A published detector as a checkpoint has it."""

    path: Path
    family: str
    tensors: Mapping[str, F32]

    def check_side(self, side: int) -> None:
        """Raises UserError for pictures that it does not read."""
        multiple = family_of(self.family).MULTIPLE
        if side % multiple:
            near = max(multiple, round(side / multiple) * multiple)
            raise UserError(
                f"side={side} is not a multiple of {multiple}, which {self.family} reads; use side={near}.",
                field="side",
                given=side,
                nearest=near,
            )

    def detector(self, data: SplitData) -> Detector:
        """Its record for the classes of `data`. Raises UserError where they do not fit."""
        if data.task != "detect":
            raise UserError(
                f"{self.path} is a detector and the pictures have classes alone; give --annotations.",
                field="teacher",
                given=str(self.path),
            )
        module = family_of(self.family)
        shapes = {name: tuple(each.shape) for name, each in self.tensors.items()}
        first = getattr(module, "FIRST_COLUMN", 1)
        columns = columns_of(self.path, module.outputs_of(shapes), first, data.classes, data.categories)
        return Detector(family=self.family, shapes=shapes, columns=columns)

    def rounded(self) -> dict[str, F32]:
        """The tensors by their names in a pack, as it keeps them."""
        return rounded(named(self.tensors))


def is_checkpoint(place: str) -> bool:
    """Whether it is a checkpoint that is meant and not a pack."""
    path = Path(place)
    if bundled(place) != path:
        return False
    return path.is_file() or (path.is_dir() and not (path / "pack.json").exists())


def read_checkpoint(place: str) -> Published:
    """The detector of a checkpoint. Raises UserError for what is none, DamagedFileError for a file that
    does not hold or would run code."""
    path = _file_of(Path(place))
    if path.stat().st_size > LARGEST:
        raise DamagedFileError(path, "it is longer than 4 GiB", field="teacher")
    tensors = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    family, folded = read_detector(path, tensors)
    return Published(path, family, folded)


def _file_of(path: Path) -> Path:
    if path.is_file():
        if path.suffix in ENDINGS:
            return path
        raise UserError(f"{path} is no checkpoint ({', '.join(ENDINGS)}).", field="teacher", given=str(path))
    found = sorted(one for one in path.iterdir() if one.suffix in ENDINGS and one.is_file())
    plain = [one for one in found if one.suffix == ".safetensors"]
    if len(plain or found) != 1:
        some = ", ".join(one.name for one in found[:4]) or "none"
        raise UserError(
            f"{path} holds {some}; give one checkpoint ({', '.join(ENDINGS)}), or a split pack.",
            field="teacher",
            given=str(path),
        )
    return (plain or found)[0]


def _safetensors(path: Path) -> dict[str, F32]:
    from haversack.formats.safetensors import SafetensorsFile

    file = SafetensorsFile.open(path)
    found = {}
    for name, entry in file.tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        kinds = {"f32": "<f4", "f16": "<f2"}
        if entry.kind not in kinds:
            raise UserError(
                f"the tensor {name} of {path} is {entry.kind}; convert it to f32.",
                field="teacher",
                given=entry.kind,
                nearest="f32",
            )
        values = np.frombuffer(file.bytes(name), kinds[entry.kind]).reshape(entry.shape)
        found[name] = values.astype(np.float32)
    return found


def _pickled(path: Path) -> dict[str, F32]:
    import torch

    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        said = str(error).split("\n")[0][:120]
        raise UserError(
            f"{path} is refused: it is damaged or holds more than tensors, which could run code ({said}); "
            "give a state dict, as torch.save(model.state_dict(), FILE) or safetensors write it.",
            field="teacher",
            given=str(path),
        ) from error
    for name in WRAPPERS:
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
    if not isinstance(held, dict) or not all(isinstance(each, torch.Tensor) for each in held.values()):
        raise UserError(f"{path} holds no state dict.", field="teacher", given=str(path))
    plain = {str(name).removeprefix("module."): each for name, each in held.items()}
    return {
        name: each.detach().to(torch.float32).contiguous().numpy()
        for name, each in plain.items()
        if each.is_floating_point()
    }
