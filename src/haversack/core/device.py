"""A device is a TOML profile: what a machine can hold and how fast it reads, computes and calls.

Profiles of boards and phones ship in `core/devices/`; `haversack devices measure --save NAME` writes one for
this machine into the user's data folder, where `device(NAME)` finds it too (a user's profile wins over a
bundled one). A figure that nobody measured is listed in the profile's `estimated`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from haversack.core._files import data_folder, write_atomically
from haversack.core.errors import DamagedFileError, UserError, not_allowed, unknown_name

PRECISIONS = ("f32", "f16", "bf16", "int8")
RUNTIMES = ("python", "export", "c")
HUGE_SPEEDUP = 1.17
"""Reading in 2 MiB pages against 4 KiB pages, where a profile does not say."""
_MOST_BYTES = 64 * 1024


@dataclass(frozen=True)
class Device:
    """What a machine can hold and how fast it is; rates are what good code reaches, not the data sheet's
    peak.

    `isa`: instruction set our kernels would pick (`avx512`, `avx2`, `neon`, `dotprod`, `portable`, `thumb`).
    `ram_mib`, `storage_mib`: what the system leaves to programs. `read_gb_s`: reading memory with all cores,
    in 4 KiB pages, as mapped weights lie; `read_gb_s_one_thread`; `read_gb_s_huge`: with all cores in 2 MiB
    pages, as copied weights lie (0: HUGE_SPEEDUP times the other). `storage_mb_s`: reading storage past the
    page cache. `gops`: 10^9 operations a second of all cores (a multiply-add is two) by precision of the
    arithmetic. `call_us`: one
    native call from the runtime (0 when compiled). `base_ram_mib`: the runtime and its imports before any
    model. `watts_idle`, `watts_busy`: of the whole device. `runtime`: `python` (this package runs there),
    `export` (another engine does), `c` (generated C). `estimated`: fields (`gops.int8` for one rate) that
    were derived, not measured. `source`: where figures come from.
    """

    name: str
    title: str
    cores: int
    isa: str
    ram_mib: float
    storage_mib: float
    read_gb_s: float
    read_gb_s_one_thread: float
    storage_mb_s: float
    gops: dict[str, float] = field(hash=False)
    call_us: float
    base_ram_mib: float
    watts_idle: float
    watts_busy: float
    runtime: str = "python"
    estimated: tuple[str, ...] = ()
    source: str = ""
    read_gb_s_huge: float = 0.0

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise not_allowed("runtime", self.runtime, RUNTIMES)
        if isinstance(self.cores, bool) or not isinstance(self.cores, int) or not 1 <= self.cores <= 4096:
            raise UserError(f"cores={self.cores!r} is not a count of cores.", field="cores", given=self.cores)
        for name in _NUMBERS:
            value = getattr(self, name)
            if not _is_number(value) or value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
                raise UserError(f"{name}={value!r} is not a positive number.", field=name, given=value)
        for precision, rate in self.gops.items():
            if precision not in PRECISIONS:
                raise not_allowed("gops", precision, PRECISIONS)
            if not _is_number(rate) or rate <= 0:
                raise UserError(
                    f"gops.{precision}={rate!r} is not a positive number.", field="gops", given=rate
                )
        if "f32" not in self.gops:
            raise UserError("gops names no rate for f32; add gops.f32.", field="gops", given=dict(self.gops))

    def rate(self, precision: str) -> float:
        """Operations a second of all cores in `precision` (f32, f16, bf16, int8). One that the profile does
        not name runs at the f32 rate. Raises UserError for a precision outside the closed list."""
        if precision not in PRECISIONS:
            raise not_allowed("precision", precision, PRECISIONS)
        return 1e9 * self.gops.get(precision, self.gops["f32"])

    def is_estimated(self, name: str) -> bool:
        """True when the field (`gops` for any of its rates, `gops.int8` for one) was not measured."""
        return name in self.estimated or any(entry.startswith(f"{name}.") for entry in self.estimated)

    def toml(self) -> str:
        """The profile as `device()` reads it."""
        lines = []
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("name", "gops"):
                continue
            if isinstance(value, str):
                lines.append(f"{entry.name} = {_quoted(value)}")
            elif isinstance(value, tuple):
                lines.append(f"{entry.name} = [{', '.join(_quoted(item) for item in value)}]")
            else:
                lines.append(f"{entry.name} = {value!r}")
        lines += ["", "[gops]", *(f"{key} = {rate!r}" for key, rate in self.gops.items()), ""]
        return "\n".join(lines)

    def save(self, name: str | None = None) -> Path:
        """Write the profile into the user's data folder under `name`; returns the file. Raises UserError for
        a name that is not lower-case words joined by hyphens, and when the folder cannot be written."""
        name = check_device_name(name or self.name)
        folder = _user_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be made: {error.strerror}.", field="name", given=name
            ) from error
        path = folder / f"{name}.toml"
        write_atomically(path, self.toml().encode())
        return path


_MAY_BE_ZERO = ("call_us", "base_ram_mib", "watts_idle", "watts_busy", "read_gb_s_huge")
_NUMBERS = (
    "ram_mib",
    "storage_mib",
    "read_gb_s",
    "read_gb_s_one_thread",
    "storage_mb_s",
    *_MAY_BE_ZERO,
)


def check_device_name(name: str) -> str:
    """The name, when a profile may be saved under it. Raises UserError with one that may be used
    otherwise."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "my-device"
        raise UserError(
            f"{name!r} cannot name a device; use lower-case letters, digits and hyphens, as in {near}.",
            field="name",
            given=name,
            nearest=near,
        )
    return name


def device(name_or_path: str | os.PathLike[str]) -> Device:
    """The profile of a name (`device_names()`) or of a path to a TOML file.

    Raises UserError with the nearest name for an unknown one, DamagedFileError for a file that is no valid
    profile.
    """
    text = os.fspath(name_or_path)
    if text.endswith(".toml") or os.sep in text:
        path = Path(text)
        if not path.is_file():
            raise UserError(f"no device profile at {path}.", field="device", given=text)
        return _read(path, path.stem)
    own = _user_folder() / f"{text}.toml"
    if re.fullmatch(r"[A-Za-z0-9-]+", text) and own.is_file():
        return _read(own, text)
    if text in _bundled():
        return _parse(
            files("haversack.core").joinpath("devices", f"{text}.toml").read_bytes(), text, f"{text}.toml"
        )
    raise unknown_name("device", text, device_names())


def device_names() -> tuple[str, ...]:
    """All names that `device()` knows: the bundled profiles and the user's own, sorted."""
    return tuple(sorted({*_bundled(), *user_device_names()}))


def user_device_names() -> tuple[str, ...]:
    """The names of the user's own profiles, sorted."""
    folder = _user_folder()
    return tuple(sorted(path.stem for path in folder.glob("*.toml"))) if folder.is_dir() else ()


def _bundled() -> tuple[str, ...]:
    folder = files("haversack.core").joinpath("devices")
    return tuple(entry.name[: -len(".toml")] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _user_folder() -> Path:
    return data_folder() / "devices"


def _read(path: Path, name: str) -> Device:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", field="device", given=str(path)
        ) from error
    if len(data) > _MOST_BYTES:
        raise DamagedFileError(path, "a device profile is smaller than 64 KiB", field="device")
    return _parse(data, name, path)


def _parse(data: bytes, name: str, where: object) -> Device:
    try:
        record: Mapping[str, Any] = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise DamagedFileError(where, f"it is not TOML ({error})", field="device") from error
    known = {entry.name: entry for entry in dataclasses.fields(Device)}
    for key in record:
        if key not in known or key == "name":
            raise DamagedFileError(where, f"a device profile has no field {key!r}", field=key)
    for key, entry in known.items():
        optional = entry.default is not dataclasses.MISSING
        if key != "name" and key not in record and not optional:
            raise DamagedFileError(where, f"the field {key!r} is missing", field=key)
    for key in ("title", "isa", "runtime", "source"):
        if not isinstance(record.get(key, ""), str):
            raise DamagedFileError(where, f"{key} is not a text", field=key)
    estimated = record.get("estimated", [])
    if not isinstance(estimated, list) or not all(isinstance(item, str) for item in estimated):
        raise DamagedFileError(where, "estimated is not a list of field names", field="estimated")
    for item in estimated:
        if item.partition(".")[0] not in known:
            raise DamagedFileError(where, f"estimated names {item!r}, which is no field", field="estimated")
    if not isinstance(record["gops"], dict):
        raise DamagedFileError(where, "gops is not a table of rates", field="gops")
    try:
        return Device(**{**record, "name": name, "estimated": tuple(estimated)})
    except UserError as error:
        raise DamagedFileError(where, str(error).rstrip("."), field=error.field) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _quoted(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(c):04X}" if ord(c) < 32 or ord(c) == 127 else "\\" + c if c in '"\\' else c for c in text
    )
    return f'"{escaped}"'
