"""From the hidden states of a text to one vector: what a sentence encoder's folder says, and the maths of it.

`modules.json` lists Transformer, Pooling and perhaps Normalize; `1_Pooling/config.json` says how tokens
become one vector; `sentence_bert_config.json` bounds the tokens of a text. Without these files the mean over
a text's tokens is taken and not normalised, as sentence-transformers does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError, not_allowed

F32 = npt.NDArray[np.float32]

MODES = ("mean", "cls", "max", "mean-sqrt", "last", "weighted-mean")
_FIELDS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean-sqrt",
    "pooling_mode_weightedmean_tokens": "weighted-mean",
    "pooling_mode_lasttoken": "last",
}
SMALL = np.float32(1e-12)


@dataclass(frozen=True)
class Pooling:
    """How a text becomes a vector: `modes` behind one another, then length 1 with `normalize`.

    `longest`: most tokens of a text, when the folder says so.
    """

    modes: tuple[str, ...] = ("mean",)
    normalize: bool = False
    longest: int | None = None

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in MODES:
                raise not_allowed("pooling", mode, MODES)

    def width(self, hidden: int) -> int:
        """Numbers of a vector over hidden states of `hidden` numbers."""
        return hidden * len(self.modes)

    def record(self) -> dict[str, Any]:
        """As a pack's plan keeps it."""
        return {"modes": list(self.modes), "normalize": self.normalize, "longest": self.longest}

    @classmethod
    def of_record(cls, record: Any) -> Pooling:
        """What `record` kept; the default for a pack that says nothing. Raises UserError for what `record`
        never makes."""
        if record is None:
            return cls()
        said = record if isinstance(record, dict) else {}
        modes, normalize, longest = said.get("modes"), said.get("normalize"), said.get("longest")
        if (
            not isinstance(modes, list)
            or not modes
            or not all(isinstance(mode, str) for mode in modes)
            or not isinstance(normalize, bool)
            or isinstance(longest, bool)
            or not (longest is None or (isinstance(longest, int) and longest >= 3))
        ):
            raise UserError(
                f"the pack's plan has a pooling that cannot be: {str(record)[:80]}.",
                field="pooling",
                given=None,
            )
        return cls(tuple(modes), normalize, longest)


def pool(hidden: F32, modes: tuple[str, ...]) -> F32:
    """Hidden states f32 [n, width] of one text -> f32 [width x modes]."""
    n = np.float32(len(hidden))
    found = []
    for mode in modes:
        if mode == "cls":
            found.append(hidden[0])
        elif mode == "last":
            found.append(hidden[-1])
        elif mode == "max":
            found.append(hidden.max(axis=0))
        elif mode == "weighted-mean":
            weights = np.arange(1, len(hidden) + 1, dtype=np.float32)[:, None]
            found.append((hidden * weights).sum(axis=0) / weights.sum())
        else:
            found.append(hidden.sum(axis=0, dtype=np.float32) / (n if mode == "mean" else np.sqrt(n)))
    return np.concatenate(found).astype(np.float32, copy=False)


def normalized(vectors: F32) -> F32:
    """Rows of `vectors` f32 [n, width] scaled to length 1; a row of zeros stays."""
    lengths = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    scaled: F32 = vectors / np.maximum(lengths, SMALL)
    return scaled


def read_pooling(folder: Path, width: int) -> Pooling:
    """What the files of `folder` say (see the top). Raises UserError for a module that is not computed here,
    DamagedFileError for files that do not hold."""
    from haversack.formats.safetensors import read_json

    longest = None
    bounds = folder / "sentence_bert_config.json"
    if bounds.is_file():
        longest = read_json(bounds, 1 << 20).get("max_seq_length")
        if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 3):
            raise DamagedFileError(bounds, f"max_seq_length={longest!r} is no number of tokens")
    listing = folder / "modules.json"
    if not listing.is_file():
        return Pooling(longest=longest)
    modes: tuple[str, ...] = ("mean",)
    normalize = False
    for module in _modules(listing):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            path = folder / _plain(listing, module) / "config.json"
            if not path.resolve().is_relative_to(folder.resolve()):
                raise DamagedFileError(listing, f"the path {module.get('path')!r} leads outside")
            modes = _modes(path, read_json(path, 1 << 20), width)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UserError(
                f"{listing}: the module {kind or 'without a type'} is not computed (allowed Transformer, "
                "Pooling, Normalize).",
                field="modules.json",
                given=kind,
                nearest="Pooling",
            )
    return Pooling(modes, normalize, longest)


def _plain(listing: Path, module: Mapping[str, Any]) -> str:
    path = module.get("path")
    if not isinstance(path, str) or not path or "\0" in path:
        raise DamagedFileError(listing, "a module has no path")
    return path


def _modules(listing: Path) -> list[Mapping[str, Any]]:
    import json

    try:
        data = listing.read_bytes()
        found = json.loads(data.decode("utf-8")) if len(data) < 1 << 20 else None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(listing, "it is not JSON") from error
    if not isinstance(found, list) or not all(isinstance(module, dict) for module in found):
        raise DamagedFileError(listing, "it is no list of modules")
    return found


def _modes(path: Path, said: Mapping[str, Any], width: int) -> tuple[str, ...]:
    modes = tuple(mode for name, mode in _FIELDS.items() if said.get(name) is True)
    if not modes and isinstance(said.get("pooling_mode"), str):
        modes = (
            {"lasttoken": "last", "mean_sqrt_len_tokens": "mean-sqrt", "weightedmean": "weighted-mean"}.get(
                said["pooling_mode"], said["pooling_mode"]
            ),
        )
    if not modes:
        raise UserError(
            f"{path} chooses no pooling (allowed {', '.join(_FIELDS)}).", field="pooling", nearest="mean"
        )
    stated = said.get("word_embedding_dimension", width)
    if stated != width:
        raise UserError(
            f"{path}: word_embedding_dimension={stated} where the model has {width}.",
            field="word_embedding_dimension",
            given=stated,
            nearest=width,
        )
    return modes
