"""Reading a hub config with bounds: every field has a type, a range and an error that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haversack.core.errors import UserError, not_allowed, unknown_name

LARGEST = 1 << 24
_ABSENT: Any = object()


class Config:
    """A config.json (or a table inside one) read field by field; what is wrong is a UserError that names
    the field.

    `names` are a family's own names of fields; a config may use them or the usual ones.
    """

    def __init__(
        self, values: Mapping[str, Any], what: str = "config.json", names: Mapping[str, str] | None = None
    ) -> None:
        names = names or {}
        self.values = {**values, **{usual: values[name] for usual, name in names.items() if name in values}}
        self.what = what
        self._names = {usual: name for usual, name in names.items() if name in values or usual not in values}

    def named(self, name: str) -> str:
        """The field `name` as this config spells it."""
        return self._names.get(name, name)

    def wrong(self, name: str, why: str, nearest: Any = None) -> UserError:
        """The error for the field `name`; `why` continues the sentence `NAME=VALUE ...`."""
        given, named = self.values.get(name), self.named(name)
        shown = repr(given)[:80]
        return UserError(f"{self.what}: {named}={shown} {why}.", field=named, given=given, nearest=nearest)

    def only(self, name: str, allowed: Any) -> None:
        """Refuse a field whose value is neither `allowed` nor null: what else it asks for is not computed."""
        if self.has(name) and self.values[name] != allowed:
            raise self.wrong(name, f"is not supported by this family (allowed {_shown(allowed)})", allowed)

    def has(self, name: str) -> bool:
        """True when the field is there and not null."""
        return self.values.get(name) is not None

    def _found(self, name: str, default: Any) -> Any:
        value = self.values.get(name, default)
        if value is None and default is not None:
            value = default
        if value is _ABSENT:
            raise UserError(f"{self.what} has no {self.named(name)}.", field=self.named(name))
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
            named = self.named(name)
            raise unknown_name(f"{self.what}: {named}", str(value)[:80], allowed, field=named)
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

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of `count` finite numbers above 0."""
        value = self._found(name, _ABSENT)
        if not isinstance(value, list) or len(value) != count:
            raise self.wrong(name, f"is not a list of {count} numbers")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int | float) or not 0 < item < math.inf:
                raise self.wrong(name, "holds what is no finite number above 0")
        return tuple(float(item) for item in value)

    def flags(self, name: str, count: int) -> list[bool] | None:
        """A list of at least `count` zeros and ones, None when absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < count or any(item not in (0, 1) for item in value):
            raise self.wrong(name, f"is not a list of {count} zeros and ones, one for each block")
        return [bool(item) for item in value[:count]]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def refuse_others(config: Config, classes: Sequence[str]) -> None:
    """Raises UserError for classes of an encoder-decoder family that do not write text, for half a model and
    for quantized checkpoints."""
    if config.has("quantization_config"):
        raise UserError(
            "config.json: quantization_config says that the weights are quantized in a format that is not "
            "read; give the unquantized checkpoint and let `haversack pack` quantize it.",
            field="quantization_config",
        )
    if not config.flag("is_encoder_decoder", True):
        raise config.wrong("is_encoder_decoder", "leaves the decoder out, which writes (allowed true)", True)
    listed = config.values.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed else listed
    if named is not None and named not in classes:
        raise unknown_name("config.json: architectures", str(named)[:80], classes, field="architectures")
