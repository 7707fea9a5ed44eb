"""A split network as a pack (kind `split`): tensors, both halves as ONNX, and what each mode is worth.

`whole` holds both halves, `device` what a device needs; a detector that looks at regions has a graph for them
beside the server's. `model` of the record is a hash over all tensors,
the teacher's included; both halves carry it, and every frame.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Finding, Pack, PackWriter, is_pack
from haversack.models.vision._detector_maps import MisfitError
from haversack.models.vision._detector_record import Detector
from haversack.models.vision._slim_onnx import device_onnx, look_onnx, member_onnx, server_onnx
from haversack.models.vision._slim_record import BITS, MEMBERS, TASKS, SplitNet
from haversack.models.vision.slimmable import device_tensors, tensor_shapes
from haversack.share.slimmable import Mode

F32 = NDArray[np.float32]
DEVICE, SERVER, LOOK = "device.onnx", "server.onnx", "regions.onnx"
_DTYPES = {"f16": "<f2", "f32": "<f4"}
SIDE_MOST = 1024


class SplitRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What `architecture` of such a pack holds. `half`: whole or device; `quality`: of each mode, k first,
    from 0 to 1, and of the teacher, measured as `metric` says; `detector`: the published detector whose
    rest the server runs (none: our own teacher)."""

    half: str
    task: str
    classes: tuple[str, ...]
    side: int
    members: int
    gains: tuple[float, ...]
    model: str
    metric: str
    quality: tuple[tuple[float, ...], ...]
    teacher: float
    detector: Detector | None = None

    @property
    def net(self) -> SplitNet:
        return SplitNet(self.task, self.classes, self.side, self.members, self.detector)

    @property
    def table(self) -> dict[Mode, float]:
        """Mode -> quality."""
        return {(k, b): value for k, row in enumerate(self.quality, 1) for b, value in enumerate(row, 1)}

    @property
    def key(self) -> bytes:
        """What frames carry of the hash."""
        return bytes.fromhex(self.model)[:16]


def kind_of(shape: tuple[int, ...]) -> str:
    """How a tensor is stored: convolutions as f16, all else as f32."""
    return "f16" if len(shape) == 4 else "f32"


def rounded(tensors: Mapping[str, F32]) -> dict[str, F32]:
    """The tensors as a pack keeps them; both halves compute with these."""
    return {
        name: array.astype(np.float16).astype(np.float32) if kind_of(array.shape) == "f16" else array
        for name, array in tensors.items()
    }


def model_hash(net: SplitNet, tensors: Mapping[str, F32]) -> str:
    """SHA-256 over sizes and tensors."""
    said = json.dumps([net.task, net.classes, net.side, net.members])
    total = hashlib.sha256(said.encode())
    if net.detector is not None:
        total.update(msgspec.json.encode(net.detector))
    for name in tensor_shapes(net):
        total.update(name.encode() + np.ascontiguousarray(tensors[name], "<f4").tobytes())
    return total.hexdigest()


def write_split(
    path: Path,
    net: SplitNet,
    gains: tuple[float, ...],
    tensors: Mapping[str, F32],
    table: Mapping[Mode, float],
    teacher: float,
    metric: str,
    provenance: Mapping[str, Any],
) -> SplitRecord:
    """Write the whole pack. Raises MissingExtraError without onnx, UserError where it cannot be written."""
    tensors = rounded(tensors)
    rows = tuple(tuple(round(table[k, b], 5) for b in range(1, BITS + 1)) for k in range(1, net.members + 1))
    record = SplitRecord(
        half="whole",
        task=net.task,
        classes=net.classes,
        side=net.side,
        members=net.members,
        gains=gains,
        model=model_hash(net, tensors),
        metric=metric,
        quality=rows,
        teacher=round(teacher, 5),
        detector=net.detector,
    )
    _write(path, record, tensors, provenance)
    return record


def write_device_half(pack: Pack, path: Path) -> SplitRecord:
    """Write what a device needs of a whole pack."""
    record = msgspec.structs.replace(read_record(pack), half="device", detector=None)
    _write(path, record, read_tensors(pack), pack.record.provenance)
    return record


def _write(
    path: Path, record: SplitRecord, tensors: Mapping[str, F32], provenance: Mapping[str, Any]
) -> None:
    with PackWriter(path, kind="split") as writer:
        for name in names_of(record):
            kind = kind_of(tensors[name].shape)
            array = np.ascontiguousarray(tensors[name], _DTYPES[kind])
            writer.add_tensor(name, kind, array.shape, [array.tobytes()])
        writer.add_file(DEVICE, device_onnx(record.net, tensors, record.gains))
        for at in range(record.members):
            writer.add_file(member_name(at), member_onnx(record.net, tensors, at))
        if record.half == "whole":
            writer.add_file(SERVER, server_onnx(record.net, tensors))
            look = look_onnx(record.net, tensors)
            if look is not None:
                writer.add_file(LOOK, look)
        writer.finish(
            {
                "architecture": msgspec.to_builtins(record),
                "plan": {"cut": "slimmable"},
                "provenance": dict(provenance),
            }
        )


def member_name(at: int) -> str:
    """The file of member number `at`, counted from 0."""
    return f"member-{at + 1}.onnx"


def names_of(record: SplitRecord) -> tuple[str, ...]:
    """The tensors that a pack of this record holds."""
    return device_tensors(record.members) if record.half == "device" else tuple(tensor_shapes(record.net))


def open_split(path: str | os.PathLike[str]) -> tuple[Pack, SplitRecord]:
    """A split pack, checked. Raises UserError for what is none, DamagedFileError for one that does not
    hold."""
    place = bundled(path)
    if not is_pack(place):
        shipped = ", ".join(bundled_names()) or "none"
        raise UserError(
            f"there is no split pack at {place}; give the folder that haversack share split train wrote, "
            f"or the name of one that ships ({shipped}).",
            field="pack",
            given=str(path),
        )
    pack = Pack.open(place)
    if pack.record.kind != "split":
        raise UserError(
            f"{place} is a {pack.record.kind} pack, not a split one.", field="pack", given=pack.record.kind
        )
    record = read_record(pack)
    pack.verify_once()
    return pack, record


def bundled_names() -> tuple[str, ...]:
    """The split packs that ship."""
    from importlib.resources import files

    folder = files("haversack").joinpath("reference_models")
    found = (entry.name for entry in folder.iterdir() if entry.name.startswith("split-"))
    return tuple(sorted(name for name in found if is_pack(Path(str(folder.joinpath(name))))))


def bundled(path: str | os.PathLike[str]) -> Path:
    """The folder of a pack that ships, by its name, or the path itself."""
    from importlib.resources import files

    if str(path) in bundled_names():
        return Path(str(files("haversack").joinpath("reference_models", str(path))))
    return Path(path)


def read_record(pack: Pack) -> SplitRecord:
    """What the pack says of its network. Raises DamagedFileError."""
    try:
        record = msgspec.convert(pack.record.architecture, SplitRecord)
        what = _impossible(record)
    except msgspec.ValidationError as error:
        raise DamagedFileError(pack.path, f"its record is none of a split network ({error})") from error
    if what:
        raise DamagedFileError(pack.path, what)
    shapes = tensor_shapes(record.net)
    for name in names_of(record):
        entry = pack.tensors.get(name)
        if entry is None or entry.kind != kind_of(shapes[name]) or tuple(entry.shape) != shapes[name]:
            raise DamagedFileError(pack.path, f"the tensor {name} is missing or of another shape")
    return record


def _impossible(record: SplitRecord) -> str:
    """What cannot be, or nothing."""
    if record.half not in ("whole", "device") or record.task not in TASKS:
        return f"its half {record.half[:20]!r} or task {record.task[:20]!r} is not known"
    if not 1 <= record.members <= MEMBERS or len(record.gains) != record.members:
        return f"it cannot have {record.members} members with {len(record.gains)} gains"
    if not 16 <= record.side <= SIDE_MOST or record.side % 16 or not 1 <= len(record.classes) <= 10_000:
        return f"pictures of {record.side} pixels with {len(record.classes)} classes are not possible"
    if record.detector is not None:
        try:
            record.detector.check(record.side)
        except MisfitError as error:
            return f"its detector does not hold: {error}"
        if record.task != "detect" or len(record.detector.columns) != len(record.classes):
            return "its detector has not an output for each class"
    if len(record.quality) != record.members or any(len(row) != BITS for row in record.quality):
        return "its table of qualities has not a number for each mode"
    numbers = [*record.gains, record.teacher, *(value for row in record.quality for value in row)]
    if not all(math.isfinite(value) and abs(value) <= 1e3 for value in numbers):
        return "its gains or qualities are no numbers"
    if len(record.model) != 64 or set(record.model) - set("0123456789abcdef"):
        return "its hash is none"
    return ""


def read_tensors(pack: Pack) -> dict[str, F32]:
    """Every tensor of the pack. Raises DamagedFileError for one that holds what is no number."""
    found: dict[str, F32] = {}
    for name, entry in pack.tensors.items():
        values = np.frombuffer(pack.bytes(name), _DTYPES[entry.kind]).reshape(entry.shape)
        values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise DamagedFileError(pack.path, f"the tensor {name} holds what is no number")
        found[name] = values
    return found


def split_findings(path: str | os.PathLike[str]) -> list[Finding]:
    """What does not hold of a split pack whose files do: its record, its numbers, its hash, its graphs."""
    pack = Pack.open(path)
    try:
        record = read_record(pack)
        tensors = read_tensors(pack)
    except DamagedFileError as error:
        return [Finding("pack.json", error.what)]
    wanted = [DEVICE, *map(member_name, range(record.members))]
    wanted += [SERVER] if record.half == "whole" else []
    wanted += [LOOK] if record.detector is not None and hasattr(record.detector.module, "regions") else []
    found = [Finding(name, "it is missing") for name in wanted if name not in pack.record.files]
    if record.half == "whole" and model_hash(record.net, tensors) != record.model:
        found.append(Finding("weights.safetensors", "its tensors are not those that the record's hash is of"))
    return found
