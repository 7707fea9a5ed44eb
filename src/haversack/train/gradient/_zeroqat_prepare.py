"""Before ZeroQAT's forward passes: every block smoothed, fitted and, where it will not learn, packed.

Paper: ZeroQAT (arXiv 2509.00031, 2025); see zeroqat.py. The result is a pack that runs as it is, and the file
zeroqat.npz beside its weights with the clips of the matrices that stay floats. One block is in memory at a
time, and two sets of states of the calibration text: through float blocks and through rounded ones.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.memory import give_back_freed
from haversack.core.pack import Pack, PackWriter
from haversack.core.progress import Progress
from haversack.kernels import Matrix
from haversack.kernels.nested import Plane
from haversack.models._architecture import Block
from haversack.models._hub_write import CARRIED
from haversack.models._observers import ChannelMoments
from haversack.run._source import Model
from haversack.run._weights import FLOAT_KINDS
from haversack.train._training import torch_part
from haversack.train.gradient._zeroqat_decoder import (
    F32,
    Bits,
    RoundedDecoder,
    floats,
    rounded_block,
)
from haversack.train.gradient._zeroqat_grid import OFF, fresh_clip, packed
from haversack.train.gradient._zeroqat_smoothing import (
    ALPHA,
    ALPHA_WITH_SHIFTS,
    Place,
    column_peaks,
    first_scales,
    merged,
    places_of,
)

CLIPS_NAME = "zeroqat.npz"


@dataclass(frozen=True)
class Preparing:
    """How: `kept` all or query-value, the matrices that stay floats; `smooth` None, the exponent alpha, or
    "given" for the family's own; `epochs` of the warm start (0: none, and no PyTorch), `batch` texts a
    step."""

    bits: Bits
    kept: str = "all"
    smooth: float | str | None = "given"
    epochs: int = 2
    batch: int = 2
    seed: int = 0


def first_places(
    block: Block, tensors: Mapping[str, F32], seen: Mapping[str, ChannelMoments], smooth: float | str | None
) -> dict[Place, tuple[F32, F32 | None]]:
    """(s, d) that the warm start begins with: from what the text sent into norms' consumers; 1 and 0 behind
    values and between heads. None where inputs are not rounded (`smooth` None)."""
    found: dict[Place, tuple[F32, F32 | None]] = {}
    for place in places_of(block) if smooth is not None else ():
        channels = place.channels(tensors)
        if place.kind != "norm":
            ones = np.ones(channels, np.float32)
            found[place] = (ones, np.zeros(channels, np.float32) if place.shifts else None)
            continue
        moments = seen[place.consumers[0][0]]
        if smooth == "given":
            alpha = ALPHA_WITH_SHIFTS if place.shifts else ALPHA
        else:
            alpha = float(smooth or 0)
        shift = np.asarray((moments.high + moments.low) / 2, np.float32) if place.shifts else None
        spread = np.asarray((moments.high - moments.low) / 2, np.float32)
        largest = moments.largest if shift is None else spread
        found[place] = (first_scales(largest, column_peaks(place, tensors), alpha), shift)
    return found


def kept_names(model: Model, kept: str) -> tuple[str, ...]:
    """The matrices that stay floats. Raises UserError for a block without query and value."""
    if kept == "all":
        return tuple(linear.weight for block in model.architecture.blocks for linear in block.matrices())
    found = []
    for block in model.architecture.blocks:
        if block.attention is None:
            raise UserError(
                f"block {block.index} has no attention, whose query and value the light variant trains.",
                field="variant",
                given="light",
                nearest="full",
            )
        found += [block.attention.query.weight, block.attention.value.weight]
    return tuple(found)


def prepare(
    model: Model, texts: npt.NDArray[Any], how: Preparing, goal: Path, *, bar: Progress | None = None
) -> tuple[tuple[float, float], ...]:
    """Write the pack `goal` of `model`, calibrated on `texts` i32 [rows, n]; gives each block's error before
    and after its warm start. Raises UserError without texts, for mixtures, and for inputs that are not
    finite."""
    if texts.size == 0:
        raise UserError("ZeroQAT needs calibration text and got none.", field="calibration", given=None)
    if any(block.mixture is not None for block in model.architecture.blocks):
        raise UserError(
            "ZeroQAT takes dense models; mixtures of experts are not supported.",
            field="model",
            given="mixture",
        )
    keeps = set(kept_names(model, how.kept))
    float_model = RoundedDecoder(model, Bits(OFF, OFF), (), {})
    rounded_model = RoundedDecoder(model, how.bits, (), {})
    exact = [float_model._embedded(np.asarray(row, np.int32)) for row in texts]
    given = [state.copy() for state in exact]
    errors: list[tuple[float, float]] = []
    clips: dict[str, F32] = {}
    with PackWriter(goal) as writer:
        for name in model.architecture.first_tensors():
            write_tensor(writer, name, floats(model, name), _float_kind(model, name))
        for block in model.architecture.blocks:
            tensors = {name: floats(model, name) for name in block.tensors()}
            seen = {group[0].weight: ChannelMoments(group[0].inputs) for group in block.products()}
            float_model.through(block, exact, _watch(seen, block))
            places = first_places(block, tensors, seen, how.smooth)
            ready, found = _fitted(block, tensors, places, how, given, exact)
            errors.append(found.errors if found is not None else (float("nan"), float("nan")))
            own = (
                found.clips
                if found is not None
                else {
                    linear.weight: fresh_clip(linear.outputs, linear.inputs, how.bits.group)
                    for linear in block.matrices()
                }
            )
            clips |= {name: own[name] for name in own if name in keeps}
            _write_block(writer, block, ready, own, keeps, how.bits)
            weights = rounded_block(block, ready, {}, own, how.bits)
            for state in given:
                step, cache = rounded_model._step(len(state)), rounded_model._cache(block, len(state))
                rounded_model._forward.advance(block, state, step, cache, weights)
            del tensors, ready, weights
            float_model._held.clear()
            give_back_freed()
            if bar is not None:
                bar.advance(label=f"block {block.index}")
        for name in model.architecture.last_tensors():
            write_tensor(writer, name, floats(model, name), _float_kind(model, name))
        for name in CARRIED:
            if (model.path / name).is_file():
                writer.add_file(name, model.path / name)
        writer.add_file(CLIPS_NAME, packed_arrays(clips))
        plan = {"precision": f"zeroqat {how.bits}, prepared"}
        provenance = {"zeroqat": {**asdict(how.bits), "kept": how.kept}}
        writer.finish({"architecture": config_of(model), "plan": plan, "provenance": provenance})
    return tuple(errors)


def _fitted(
    block: Block,
    tensors: Mapping[str, F32],
    places: Mapping[Place, tuple[F32, F32 | None]],
    how: Preparing,
    given: Sequence[F32],
    exact: Sequence[F32],
) -> tuple[dict[str, F32], Any]:
    """The block's tensors as they are used, and what the warm start found (None without one)."""
    if not how.epochs:
        return merged(places, tensors), None
    part = torch_part("haversack.train.gradient._zeroqat_torch", "ZeroQAT's warm start")
    found = part.warm_start(
        *(block, tensors, places, how.bits, given, exact), epochs=how.epochs, batch=how.batch, seed=how.seed
    )
    return merged(found.places, tensors), found


def _watch(seen: Mapping[str, ChannelMoments], block: Block) -> Any:
    def see(name: str, x: F32) -> None:
        if name in seen:
            if not np.isfinite(x).all():
                raise UserError(
                    f"calibration text gives inputs of {name} that are not finite; the model cannot be "
                    "calibrated on it.",
                    field="calibration",
                    given=name,
                )
            seen[name].add(x)

    return see


def _write_block(
    writer: PackWriter,
    block: Block,
    tensors: Mapping[str, F32],
    clips: Mapping[str, F32],
    keeps: set[str],
    bits: Bits,
) -> None:
    matrices = {linear.weight for linear in block.matrices()}
    for name, values in tensors.items():
        if name in matrices and name not in keeps and bits.weights < OFF:
            write_plane(writer, name, packed(values, bits.weights, bits.group, clips[name]))
        else:
            write_tensor(writer, name, values, "f32")


def write_plane(writer: PackWriter, name: str, plane: Plane) -> None:
    """The matrix `name` as codes with D and z by group: the form `nested` with one width."""
    writer.add_tensor(f"{name}.base", "u8", plane.data.shape, [plane.data.data])
    form = {"form": "nested", "first": plane.bits, "last": plane.bits, "group": plane.group}
    writer.add_form(name, {**form, "shape": [plane.rows, plane.columns]})


def write_tensor(writer: PackWriter, name: str, values: F32, kind: str) -> None:
    """A matrix as floats of `kind`, a vector in f32."""
    if values.ndim != 2:
        writer.add_tensor(name, "f32", values.shape, [np.ascontiguousarray(values, np.float32).data])
        return
    data = Matrix.from_array(np.ascontiguousarray(values), kind).data
    writer.add_tensor(name, kind, values.shape, [data.data])


def _float_kind(model: Model, name: str) -> str:
    """The kind in which a tensor outside the blocks stays: its own, where that is a float."""
    entry = model.source.tensors.get(name)
    return entry.kind if entry is not None and entry.kind in FLOAT_KINDS else "f16"


def config_of(model: Model) -> dict[str, Any]:
    source: Any = model.source
    return dict(source.record.architecture if isinstance(source, Pack) else source.config)


def packed_arrays(arrays: Mapping[str, Any]) -> bytes:
    """Arrays by name as the bytes of an .npz file."""
    to = io.BytesIO()
    np.savez(to, **arrays)
    return to.getvalue()


def clips_of(pack: Pack) -> dict[str, F32]:
    """The clips that `prepare` wrote. Raises DamagedFileError for a file that does not hold, UserError for a
    pack without one."""
    if CLIPS_NAME not in pack.record.files:
        raise UserError(
            f"{pack.path} was not prepared by ZeroQAT; give a checkpoint.",
            field="model",
            given=str(pack.path),
        )
    try:
        with np.load(io.BytesIO(pack.read_file(CLIPS_NAME)), allow_pickle=False) as held:
            return {name: np.asarray(held[name], np.float32) for name in held.files}
    except (OSError, ValueError, KeyError) as error:
        raise DamagedFileError(pack.path / CLIPS_NAME, "it is no file of arrays") from error
