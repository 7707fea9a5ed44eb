"""Reading a hub config with bounds: every field has a type, a range and an error that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haversack.core.errors import UserError, not_allowed, unknown_name
from haversack.models._rope import SCALINGS, Rope, yarn_attention_factor

LARGEST = 1 << 24
_ABSENT: Any = object()


class Config:
    """A config.json (or a table inside one) read field by field; what is wrong is a UserError that names
    the field.
    """

    def __init__(self, values: Mapping[str, Any], what: str = "config.json") -> None:
        self.values = values
        self.what = what

    def wrong(self, name: str, why: str, nearest: Any = None) -> UserError:
        """The error for the field `name`; `why` continues the sentence `NAME=VALUE ...`."""
        given = self.values.get(name)
        shown = repr(given)[:80]
        return UserError(f"{self.what}: {name}={shown} {why}.", field=name, given=given, nearest=nearest)

    def has(self, name: str) -> bool:
        """True when the field is there and not null."""
        return self.values.get(name) is not None

    def _found(self, name: str, default: Any) -> Any:
        value = self.values.get(name, default)
        if value is None and default is not None:
            value = default
        if value is _ABSENT:
            raise UserError(f"{self.what} has no {name}.", field=name)
        return value

    def whole(self, name: str, default: Any = _ABSENT, *, least: int = 1, most: int = LARGEST) -> int:
        """A whole number in least..most."""
        value = self._found(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "is not a whole number")
        if not least <= value <= most:
            raise self.wrong(name, f"is outside {least} to {most}", min(max(value, least), most))
        return value

    def number(self, name: str, default: Any = _ABSENT, *, least: float = 0.0, above: bool = True) -> float:
        """A finite number above `least` (`above`) or not below it."""
        value = self._found(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(name, "is not a finite number")
        if value < least or (above and value == least):
            raise self.wrong(name, f"must be {'above' if above else 'at least'} {least:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._found(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "is neither true nor false")
        return value

    def choice(self, name: str, default: Any, allowed: Mapping[str, str]) -> str:
        """One of the keys of `allowed`; gives what it stands for."""
        value = self._found(name, default)
        if not isinstance(value, str) or value not in allowed:
            raise unknown_name(f"{self.what}: {name}", str(value)[:80], allowed, field=name)
        return allowed[value]

    def tokens(self, name: str, vocabulary: int) -> tuple[int, ...]:
        """A token number, a list of them or nothing; those outside the vocabulary are refused, -1 stands
        for none.
        """
        value = self.values.get(name)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        for token in listed:
            if isinstance(token, bool) or not isinstance(token, int) or not -1 <= token < max(vocabulary, 1):
                raise self.wrong(name, f"is no token of a vocabulary of {vocabulary}")
        return tuple(dict.fromkeys(token for token in listed if token >= 0))

    def table(self, name: str) -> Config | None:
        """A table inside the config, None when absent or empty."""
        value = self.values.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "is not a table")
        return Config(value, f"{self.what}: {name}")

    def strings(self, name: str, count: int, allowed: Sequence[str]) -> list[str] | None:
        """A list of `count` texts out of `allowed`, None when absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count:
            raise self.wrong(name, f"is not a list of {count}, one for each block")
        for item in value:
            if item not in allowed:
                raise not_allowed(name, item, allowed)
        return list(value)

    def flags(self, name: str, count: int) -> list[bool] | None:
        """A list of at least `count` zeros and ones, None when absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < count or any(item not in (0, 1) for item in value):
            raise self.wrong(name, f"is not a list of {count} zeros and ones, one for each block")
        return [bool(item) for item in value[:count]]


def read_rope(config: Config, width: int, context: int, default_theta: float = 10000.0) -> Rope:
    """The rotary positions of a config, in the spelling of transformers 5 (`rope_parameters`) or the older
    ones
    (`rope_theta` and `rope_scaling`, whose `type` may be `rope_type`)."""
    if width % 2:
        raise UserError(
            f"{config.what}: a head of {width} numbers cannot be turned in pairs; head_dim must be even.",
            field="head_dim",
            given=width,
            nearest=width + 1,
        )
    name = "rope_scaling" if config.table("rope_scaling") is not None else "rope_parameters"
    table = config.table(name) or Config({}, f"{config.what}: rope_parameters")
    if any(isinstance(value, dict) for value in table.values.values()):
        raise config.wrong(name, "differs between kinds of layers, which this family does not do")
    theta = table.number("rope_theta", config.number("rope_theta", default_theta))
    spelled = "rope_type" if table.has("rope_type") else "type"
    scaling = table.values.get(spelled) or "default"
    if scaling not in SCALINGS:
        raise unknown_name(f"{table.what}: {spelled}", str(scaling)[:80], SCALINGS, field=spelled)
    for holder in (table, config):
        if holder.has("partial_rotary_factor") and holder.number("partial_rotary_factor") != 1:
            raise holder.wrong("partial_rotary_factor", "is not supported by this family (allowed 1.0)", 1.0)
    if scaling == "default":
        return Rope(width, theta)
    factor = table.number("factor") if scaling != "yarn" or table.has("factor") else 0.0
    if scaling == "linear":
        return Rope(width, theta, scaling, factor)
    if scaling == "dynamic":
        if width < 4:
            raise config.wrong("head_dim", "is too small for dynamic scaling (4 at least)", 4)
        return Rope(width, theta, scaling, factor, context)
    outer = "original_max_position_embeddings"
    original = config.whole(outer) if config.has(outer) else table.whole(outer, context)
    if scaling == "llama3":
        low, high = table.number("low_freq_factor"), table.number("high_freq_factor")
        if low >= high:
            raise table.wrong("low_freq_factor", f"must be below high_freq_factor={high:g}")
        return Rope(width, theta, scaling, factor, original, low, high)
    factor = factor or context / original
    if theta <= 1:
        raise table.wrong("rope_theta", "must be above 1 for yarn")
    fast, slow = table.number("beta_fast", 32.0), table.number("beta_slow", 1.0)
    scales = [table.number(key) if table.values.get(key) else None for key in ("mscale", "mscale_all_dim")]
    given = table.number("attention_factor") if table.has("attention_factor") else None
    attention_factor = given if given is not None else yarn_attention_factor(factor, scales[0], scales[1])
    return Rope(
        width, theta, scaling, factor, original, slow, fast, table.flag("truncate", True), attention_factor
    )
