"""LoRA adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors, read, held against
their base, merged.

    W' = W + scale * B A,   A [rank, inputs], B [outputs, rank], scale = alpha / rank  (rslora: / sqrt(rank))

An adapter changes matrices of attention and feed-forward layers. One that trains anything else (embedding,
norms, output matrix, biases) or is of another kind (DoRA, IA3, ...) is refused by name: it would not be a
LoRA of the same base any more. `require_above` adds the rule of a family: nothing of the anchor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import TensorSource
from haversack.formats.safetensors import SafetensorsFile, read_json
from haversack.models._adapter_config import CONFIG, check_config
from haversack.models._architecture import Architecture, Attention, FeedForward, Linear
from haversack.models._checkpoint import checkpoint

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

WEIGHTS = "adapter_model.safetensors"
CONFIG_MOST = 4 << 20
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model families whose targets evolve by adapters: dense decoders that keep every matrix in its own
tensor."""
_NAMED = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class Pair:
    """What is added to the matrix `name`: `scale` x `second` [outputs, rank] x `first` [rank, inputs]."""

    name: str
    block: int
    first: F32
    second: F32
    scale: float

    @property
    def rank(self) -> int:
        """Rows of `first`."""
        return len(self.first)


@dataclass(frozen=True)
class Adapter:
    """A LoRA: its `path`, what its config says, and its pairs by the matrix they change."""

    path: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, Pair]

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks it changes, rising."""
        return tuple(sorted({pair.block for pair in self.pairs.values()}))

    @property
    def layers_to_transform(self) -> tuple[int, ...] | None:
        """The blocks its config names; None where it names none, which stands for all of them."""
        said = self.config.get("layers_to_transform")
        if said is None:
            return None
        return tuple(said) if isinstance(said, list) else (said,)


def merged(values: F32, pair: Pair) -> F32:
    """W f32 [outputs, inputs] with what the adapter adds; a new array."""
    added: F32 = pair.second @ pair.first
    added *= pair.scale
    added += values
    return added


def is_adapter(folder: Path) -> bool:
    """True when `folder` holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def adapted_matrices(architecture: Architecture) -> dict[str, tuple[int, Linear]]:
    """Matrix name -> (block, matrix) of what an adapter may change: attention and feed-forward layers.

    Raises UserError for a model of a family that has no adapters here.
    """
    if architecture.family not in FAMILIES:
        raise UserError(
            f"{architecture.family} models have no adapters and drafts here (allowed: "
            f"{', '.join(FAMILIES)}).",
            field="model",
            given=architecture.family,
            nearest=FAMILIES[0],
        )
    return {
        linear.weight: (block.index, linear)
        for block in architecture.blocks
        for branch in block.branches
        if isinstance(branch.layer, Attention | FeedForward)
        for group in branch.layer.products()
        for linear in group
    }


def read_adapter(folder: Path, architecture: Architecture) -> Adapter:
    """The adapter in `folder`, for a base of `architecture`.

    Raises UserError, saying what it changes or is, for one that cannot be a LoRA of this base;
    DamagedFileError for files that do not hold.
    """
    if not folder.is_dir() or not is_adapter(folder):
        what = "has no adapter_config.json" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder} {what}; give a PEFT adapter.", field="adapter", given=str(folder))
    known = adapted_matrices(architecture)
    config = read_json(folder / CONFIG, CONFIG_MOST)
    check_config(folder, config, len(architecture.blocks))
    if not (folder / WEIGHTS).is_file():
        pickled = " (adapter_model.bin is a pickle, which is not read)" if _pickled(folder) else ""
        raise UserError(f"{folder} has no {WEIGHTS}{pickled}.", field="adapter", given=str(folder))
    file = SafetensorsFile.open(folder / WEIGHTS)
    halves: dict[str, dict[str, F32]] = {}
    for name in file.tensors:
        matrix, half = _matrix_of(folder, name, known)
        halves.setdefault(matrix, {})[half] = _values(file, name)
    if not halves:
        raise DamagedFileError(file.path, "it holds no tensors")
    pairs = {name: _pair(folder, name, found, config, known) for name, found in sorted(halves.items())}
    found = Adapter(folder, config, pairs)
    listed = found.layers_to_transform
    others = [] if listed is None else [block for block in found.blocks if block not in listed]
    if others:
        raise DamagedFileError(
            file.path, f"it changes block {others[0]}, which layers_to_transform leaves out"
        )
    return found


def require_above(adapter: Adapter, layers: int, family: str) -> None:
    """Raises UserError, naming what it touches, unless `adapter` leaves the anchor of `layers` blocks alone
    and its config says so."""
    listed = adapter.layers_to_transform
    what = f"{adapter.path} is no version of the family {family}"
    allowed = f"layers_to_transform from {layers} on, and no other block in it"
    if listed is None:
        touched = [block for block in adapter.blocks if block < layers]
        said = f", and it changes block {touched[0]}" if touched else ""
        raise UserError(
            f"{what}: its config names no layers_to_transform, which stands for every block, the anchor's "
            f"{layers} included{said}; train it with {allowed}.",
            field="layers_to_transform",
            given=None,
            nearest=layers,
        )
    inside = sorted({block for block in (*listed, *adapter.blocks) if block < layers})
    if inside:
        first = next((name for name, pair in adapter.pairs.items() if pair.block == inside[0]), None)
        named = f" ({first})" if first else ""
        raise UserError(
            f"{what}: it changes block {inside[0]}{named}, which belongs to the anchor of {layers} blocks; "
            f"train it with {allowed}, or make a new family.",
            field="layers_to_transform",
            given=inside[0],
            nearest=layers,
        )


def require_tokenizer(adapter: Path, base: Path) -> None:
    """Raises UserError when the adapter brings a tokenizer that is not its base's."""
    theirs, ours = adapter / "tokenizer.json", base / "tokenizer.json"
    if not theirs.is_file() or not ours.is_file():
        return
    tables = []
    for path in (theirs, ours):
        document = read_json(path, 256 << 20)
        tables.append((document.get("model"), document.get("added_tokens")))
    if tables[0] != tables[1]:
        raise UserError(
            f"{adapter} has another tokenizer than its base {base}: what it was trained on were other "
            "tokens; train it with the base's tokenizer.",
            field="tokenizer",
            given=str(theirs),
            nearest=str(ours),
        )


def merged_tensors(
    source: TensorSource, architecture: Architecture, pairs: Mapping[str, Pair]
) -> Iterator[tuple[str, str, tuple[int, ...], int, Any]]:
    """The tensors of `source` with `pairs` merged, as models/_hub_write.py takes them, in the order of the
    architecture. A matrix keeps its number type, to which the sum is rounded; all others keep their bytes.

    One matrix is in memory at a time, in f32. Raises UserError for weights that are no floats.
    """
    view = checkpoint(source, architecture)
    for name in architecture.tensors():
        entry = view.tensors.get(name)
        if entry is None:
            raise DamagedFileError(source.path, f"the tensor {name} is missing", field=name)
        if entry.kind not in ("f32", "f16", "bf16"):
            raise UserError(
                f"{source.path}: {name} is stored as {entry.kind}; adapters are merged into float "
                "checkpoints.",
                field="model",
                given=entry.kind,
            )
        yield name, entry.kind, entry.shape, entry.nbytes, _pieces(view, name, entry.kind, pairs.get(name))


def _pieces(view: Any, name: str, kind: str, pair: Pair | None) -> Any:
    def pieces() -> list[Any]:
        if pair is None:
            return [view.bytes(name)]
        import numpy as np

        whole = merged(_numbers(view, name), pair)
        return [np.ascontiguousarray(as_stored(name, whole, kind)).data.cast("B")]

    return pieces


def as_stored(name: str, values: F32, kind: str) -> Any:
    """`values` in a checkpoint's number type, rounded to nearest even. Raises UserError for numbers that f16
    cannot hold."""
    import numpy as np

    from haversack.kernels._matrix import to_bf16

    if kind == "f32":
        return values.astype("<f4")
    if kind == "bf16":
        return to_bf16(values)
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if not np.isfinite(halves).all():
        raise UserError(f"{name} holds numbers that f16 cannot (above 65504).", field="model", given=name)
    return halves


def _numbers(view: Any, name: str) -> F32:
    """A float tensor as f32."""
    import numpy as np

    entry = view.tensors[name]
    data = view.bytes(name)
    if entry.kind == "bf16":
        found: F32 = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        found = np.frombuffer(data, "<f4" if entry.kind == "f32" else "<f2").astype(np.float32)
    return found.reshape(entry.shape)


def _matrix_of(folder: Path, name: str, known: Mapping[str, tuple[int, Linear]]) -> tuple[str, str]:
    """(the matrix that a tensor of the adapter belongs to, A or B)."""
    found = _NAMED.fullmatch(name)
    if found is None:
        raise UserError(
            f"{folder}: the tensor {name} is no part of a LoRA of attention and feed-forward matrices "
            "(embedding, norms, output matrix, biases and magnitudes belong to the base).",
            field="adapter",
            given=name,
        )
    matrix = f"{found[1]}.weight"
    if matrix in known:
        return matrix, found[2]
    block = _BLOCK.search(matrix)
    if block is not None and int(block[1]) > max(number for number, _ in known.values()):
        why = f"and the base has {1 + max(number for number, _ in known.values())} blocks"
    else:
        why = "which is no attention or feed-forward matrix of the base"
    raise UserError(f"{folder}: the adapter changes {matrix}, {why}.", field="adapter", given=matrix)


def _values(file: SafetensorsFile, name: str) -> F32:
    import numpy as np

    entry = file.tensors[name]
    if entry.kind not in ("f32", "f16", "bf16") or len(entry.shape) != 2:
        raise DamagedFileError(file.path, f"{name} is {entry.kind} {list(entry.shape)}, no float matrix")
    values = _numbers(file, name)
    if not np.isfinite(values).all():
        raise DamagedFileError(file.path, f"{name} holds numbers that are not finite")
    return values


def _pair(
    folder: Path,
    name: str,
    halves: Mapping[str, F32],
    config: Mapping[str, Any],
    known: Mapping[str, tuple[int, Linear]],
) -> Pair:
    for half in "AB":
        if half not in halves:
            raise DamagedFileError(folder / WEIGHTS, f"{name} has no lora_{half}")
    block, linear = known[name]
    module = name.removesuffix(".weight")
    rank = int(_pattern(config.get("rank_pattern") or {}, module, config["r"]))
    alpha = float(_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8)))
    wanted = {"A": (rank, linear.inputs), "B": (linear.outputs, rank)}
    for half, shape in wanted.items():
        if halves[half].shape != shape:
            raise UserError(
                f"{folder}: lora_{half} of {name} has the shape {list(halves[half].shape)} where rank {rank} "
                f"and the base need {list(shape)}; it was made for another model or rank.",
                field="adapter",
                given=list(halves[half].shape),
                nearest=list(shape),
            )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Pair(name, block, halves["A"], halves["B"], scale)


def _pattern(table: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that ends `module` as PEFT matches it; patterns are taken as names."""
    return next((v for key, v in table.items() if module == key or module.endswith(f".{key}")), default)


def _pickled(folder: Path) -> bool:
    return (folder / "adapter_model.bin").is_file()
