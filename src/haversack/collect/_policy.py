"""What an edge agent is told: rates, thresholds, privacy, budgets; one TOML file or all defaults."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from haversack.collect.imu_gate import ImuLimits
from haversack.collect.motion_gate import MotionLimits
from haversack.collect.trigger import Thresholds
from haversack.core.errors import DamagedFileError, UserError, unknown_name

SECOND = 1_000_000_000


@dataclass(frozen=True)
class Rates:
    """Looks a second: at rest and walking (probes), active (second gate), and of the detector while the
    second gate is on, in full and when the battery is low or hot."""

    rest_hz: float = 0.1
    walk_hz: float = 1.0
    active_hz: float = 2.0
    detect_hz: float = 5.0
    saving_hz: float = 2.0


@dataclass(frozen=True)
class Privacy:
    """`minutes_blocked`: times of the day, (from, to) in minutes after midnight UTC, in which nothing is
    looked at; `blur_hz`: how often faces are looked for, where a detector for them is given."""

    minutes_blocked: tuple[tuple[int, int], ...] = ()
    blur_hz: float = 5.0


@dataclass(frozen=True)
class Savings:
    """`day_mib`: most MiB of clips a day; below `low_battery` percent or above `hot_c` degrees the detector
    slows down, below `empty_battery` everything stops."""

    day_mib: float = 4096.0
    low_battery: float = 30.0
    empty_battery: float = 15.0
    hot_c: float = 42.0


@dataclass(frozen=True)
class Policy:
    """All of it. `crf`: quality of the stored video (lower is better and larger)."""

    rates: Rates = field(default_factory=Rates)
    trigger: Thresholds = field(default_factory=Thresholds)
    imu: ImuLimits = field(default_factory=ImuLimits)
    motion: MotionLimits = field(default_factory=MotionLimits)
    privacy: Privacy = field(default_factory=Privacy)
    savings: Savings = field(default_factory=Savings)
    crf: int = 23

    def blocked(self, wall_ns: int) -> bool:
        """Whether the wall clock stands in a blocked time."""
        minute = wall_ns // (60 * SECOND) % 1440
        return any(
            begin <= minute < end if begin <= end else minute >= begin or minute < end
            for begin, end in self.privacy.minutes_blocked
        )


def read_policy(path: Path | None) -> Policy:
    """The policy in a TOML file whose tables are the fields of Policy; defaults for what it leaves out.
    Raises UserError for an unknown name (with the nearest) and for a value of another type."""
    if path is None:
        return Policy()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DamagedFileError(path, f"it is no TOML ({error})", field="policy") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", field="policy", given=str(path)
        ) from error
    parts: dict[str, Any] = {}
    known = {each.name: each for each in fields(Policy)}
    for name, value in raw.items():
        if name not in known:
            raise unknown_name("policy table", name, known, field="policy")
        if name == "crf":
            parts[name] = _number(name, value, int)
        else:
            parts[name] = _part(name, type(getattr(Policy(), name)), value)
    return Policy(**parts)


def _part(name: str, kind: type, raw: Any) -> Any:
    if not isinstance(raw, dict):
        raise UserError(f"policy.{name} is no table.", field="policy", given=name)
    defaults = kind()
    known = {each.name for each in fields(kind)}
    made: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            raise unknown_name(f"policy.{name}", key, known, field="policy")
        default = getattr(defaults, key)
        if isinstance(default, tuple):
            made[key] = _pairs(f"{name}.{key}", value, bool(default) and not isinstance(default[0], tuple))
        else:
            made[key] = _number(f"{name}.{key}", value, float)
    return kind(**made)


def _number(name: str, value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)) or value < 0:
        raise UserError(f"policy {name}={value} is no number of 0 or more.", field="policy", given=name)
    return kind(value)


def _pairs(name: str, value: Any, one: bool) -> Any:
    listed = [value] if one else value
    if not isinstance(listed, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, int | float) for x in pair)
        for pair in listed
    ):
        raise UserError(f"policy {name} is no pair of numbers, or list of pairs.", field="policy", given=name)
    found = tuple((pair[0], pair[1]) for pair in listed)
    return found[0] if one else found
