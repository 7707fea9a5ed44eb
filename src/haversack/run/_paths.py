"""What a text's routing showed: how often each expert is chosen, and which follow which paths.

A path is what one token's routers choose, layer after layer. The table counts, for every layer, its choices
by those of the two layers before; a path that was not seen falls back to the one layer before, and then to
the layer's own frequencies. A layer's choice is known by its first `width` experts, in order of their
numbers: all of them where that leaves few combinations, the best one where a layer has many experts.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

from haversack.core._files import write_atomically
from haversack.core.errors import DamagedFileError, UserError

I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]
Choice = tuple[int, ...]
Before = tuple[Choice, Choice]

PROFILE_NAME = "expert-profile.json"
PROFILE_FORMAT = (1, 0)
PROFILE_MOST = 64 * 2**20
MOST_CHOICES = 64
"""A layer's whole choice is a key where it has no more combinations than this."""
MOST_EXPERTS = 2**16


def key_width(experts: int, chosen: int) -> int:
    """How many of the `chosen` of `experts` make up a layer's key."""
    return chosen if math.comb(experts, chosen) <= MOST_CHOICES else 1


def choice_of(experts: Sequence[int], width: int) -> Choice:
    """The key of a layer's choice, which lists the best expert first."""
    return tuple(sorted(int(expert) for expert in experts[:width]))


def count_paths(routes: I32, experts: int, width: int) -> list[dict[Before, F64]]:
    """For each layer, key of the two layers before -> f64 [experts], how often each expert was chosen.

    `routes` i32 [tokens, layers, chosen], the best expert first. Layers 0 and 1 have fewer before them: an
    empty choice stands for what is not there.
    """
    layers = routes.shape[1]
    tables: list[dict[Before, F64]] = [{} for _ in range(layers)]
    for token in routes:
        choices = [(), (), *(choice_of(layer, width) for layer in token)]
        for layer, table in enumerate(tables):
            before = (choices[layer], choices[layer + 1])
            if before not in table:
                table[before] = np.zeros(experts)
            table[before][token[layer]] += 1
    return tables


def entropy_bits(frequencies: F64) -> F64:
    """Entropy of each row of `frequencies` f64 [layers, experts], in bits; log2(experts) when balanced."""
    total = frequencies.sum(axis=1, keepdims=True)
    shares = frequencies / np.where(total > 0, total, 1)
    bits: F64 = -np.sum(shares * np.log2(np.where(shares > 0, shares, 1)), axis=1)
    return bits


def carried(routes: I32, share: float = 0.2) -> float:
    """Share of the tokens that go the most frequent `share` of all distinct paths (best experts only) of
    `routes` i32 [tokens, layers, chosen].
    """
    counts = sorted(Counter(map(tuple, routes[:, :, 0].tolist())).values(), reverse=True)
    return sum(counts[: max(1, round(share * len(counts)))]) / max(1, len(routes))


class _Seen(msgspec.Struct, frozen=True, array_like=True):
    """One key of a layer's table: the choices before it, and (expert, times) of what followed."""

    first: Choice
    second: Choice
    followed: tuple[tuple[int, int], ...]


class _File(msgspec.Struct, frozen=True):
    format: tuple[int, int]
    model: str
    experts: int
    chosen: int
    width: int
    tokens: int
    layers: tuple[tuple[_Seen, ...], ...]
    read: int = 0


class Profile:
    """A path table with its frequencies. `model` is the identity of the model that it was made of, `tokens`
    how many it saw.

    `frequencies` f64 [layers, experts] sum to 1 in each layer. The `first` layers are an encoder's, of
    which nothing is kept: a path begins behind them.
    """

    def __init__(
        self,
        model: str,
        experts: int,
        chosen: int,
        tokens: int,
        width: int,
        tables: list[dict[Before, F64]],
        first: int = 0,
    ) -> None:
        self.model = model
        self.experts = experts
        self.chosen = chosen
        self.tokens = tokens
        self.width = width
        self.tables = tables
        self.first = first
        self._after: list[dict[Choice, F64]] = []
        rows = []
        for table in tables:
            after: dict[Choice, F64] = {}
            for (_, second), counts in table.items():
                after[second] = after.get(second, 0.0) + counts
            self._after.append(after)
            rows.append(sum(after.values(), np.zeros(experts)))
        counts = np.stack(rows)
        self.frequencies: F64 = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    @classmethod
    def of_routes(cls, routes: I32, experts: int, model: str, first: int = 0) -> Self:
        """The profile of `routes` i32 [tokens, layers, chosen], the best expert first, behind the `first`
        layers of an encoder. Raises UserError when there are none.
        """
        tokens, layers, chosen = routes.shape
        if tokens == 0 or layers == 0:
            raise UserError(
                "a profile needs calibration text, and there is none; give some with --calibration FILE.",
                field="calibration",
                given=tokens,
            )
        width = key_width(experts, chosen)
        tables: list[dict[Before, F64]] = [{} for _ in range(first)]
        tables += count_paths(routes, experts, width)
        return cls(model, experts, chosen, tokens, width, tables, first)

    @property
    def layers(self) -> int:
        """Layers that have experts."""
        return len(self.tables)

    def chances(self, layer: int, before: Sequence[Sequence[int]]) -> F64:
        """How probable each expert of `layer` is, f64 [experts], after the choices `before` of the layers
        under it, the nearest last (an empty sequence: nothing is known of them).
        """
        depth = layer - self.first
        second = choice_of(before[-1], self.width) if before and depth > 0 else ()
        first = choice_of(before[-2], self.width) if len(before) > 1 and depth > 1 else ()
        counts = self.tables[layer].get((first, second))
        if counts is None:
            counts = self._after[layer].get(second)
        found: F64 = self.frequencies[layer]
        if counts is not None and counts.any():
            found = counts / counts.sum()
        return found

    def entropy_bits(self) -> F64:
        """Of each layer's frequencies; balanced routers have log2(experts)."""
        return entropy_bits(self.frequencies)

    def to_bytes(self) -> bytes:
        """The profile as its file holds it."""
        layers = tuple(
            tuple(
                _Seen(first, second, tuple((int(e), int(counts[e])) for e in np.flatnonzero(counts)))
                for (first, second), counts in sorted(table.items())
            )
            for table in self.tables
        )
        said = self.model, self.experts, self.chosen, self.width, self.tokens
        record = _File(PROFILE_FORMAT, *said, layers, self.first)
        return msgspec.json.encode(record)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the profile's file. Raises UserError when the disk is full or cannot be written."""
        write_atomically(Path(path), self.to_bytes())

    @classmethod
    def of_bytes(cls, data: bytes, path: object = PROFILE_NAME) -> Self:
        """The profile of a file's bytes. Raises DamagedFileError with the first thing that does not hold."""
        try:
            if len(data) > PROFILE_MOST:
                raise ValueError(f"it has {len(data)} bytes, more than the {PROFILE_MOST} a profile needs")
            return cls._checked(msgspec.json.decode(data, type=_File))
        except (msgspec.MsgspecError, RecursionError) as error:
            raise DamagedFileError(path, f"it is no profile of experts ({error})") from error
        except ValueError as error:
            raise DamagedFileError(path, str(error)) from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a profile's file; raises like `of_bytes`, and UserError when there is none."""
        try:
            with Path(path).open("rb") as file:
                data = file.read(PROFILE_MOST + 1)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}.", field="profile", given=str(path)
            ) from error
        return cls.of_bytes(data, path)

    @classmethod
    def _checked(cls, record: _File) -> Self:
        if record.format[0] != PROFILE_FORMAT[0]:
            major, minor = record.format
            raise ValueError(f"it is of format {major}.{minor} and this program reads {PROFILE_FORMAT[0]}.x")
        if not (1 <= record.chosen <= record.experts <= MOST_EXPERTS and record.layers and record.tokens > 0):
            raise ValueError(f"it says {record.chosen} of {record.experts} experts, {record.tokens} tokens")
        if not 1 <= record.width <= record.chosen:
            raise ValueError(f"its keys hold {record.width} of {record.chosen} experts")
        if not 0 <= record.read < len(record.layers):
            raise ValueError(f"it says that {record.read} of {len(record.layers)} layers are an encoder's")
        tables: list[dict[Before, F64]] = []
        for number, layer in enumerate(record.layers):
            table: dict[Before, F64] = {}
            for seen in layer:
                for choice, depth in ((seen.first, 2), (seen.second, 1)):
                    there = 0 if number - record.read < depth else record.width
                    if len(choice) != there or not all(0 <= e < record.experts for e in choice):
                        raise ValueError(f"layer {number} has the key {str(choice)[:40]}, which cannot be")
                counts = np.zeros(record.experts)
                for expert, times in seen.followed:
                    if not 0 <= expert < record.experts or not 0 < times < 2**53:
                        raise ValueError(f"layer {number} has expert {expert} {times} times, which cannot be")
                    counts[expert] = times
                if (seen.first, seen.second) in table:
                    raise ValueError(f"layer {number} has the key {seen.first}, {seen.second} twice")
                table[seen.first, seen.second] = counts
            tables.append(table)
        said = record.model, record.experts, record.chosen, record.tokens, record.width
        return cls(*said, tables, record.read)

    def require(
        self, model: str, layers: int, experts: int, path: object = PROFILE_NAME, first: int = 0
    ) -> None:
        """Raises UserError when the profile is that of another model than the one of this identity."""
        if (self.model, self.layers, self.experts, self.first) != (model, layers, experts, first):
            raise UserError(
                f"{path} was made of another model ({self.layers} layers of {self.experts} experts, "
                f"{self.model}) than this one ({layers} of {experts}, {model}); profile this model.",
                field="profile",
                given=self.model,
                nearest=model,
            )

    def record(self) -> dict[str, Any]:
        """What it shows, as `--json` prints it."""
        return {
            "tokens": self.tokens,
            "keys": [len(table) for table in self.tables],
            "entropy_bits": [round(float(bits), 3) for bits in self.entropy_bits()],
            "balanced_bits": round(math.log2(self.experts), 3),
        }
