"""safetensors: files of tensors and checkpoint folders as hubs publish them, read in place without
conversion.

`SafetensorsFile` is one file, `HubFolder` a folder with config.json and one or several of them. The bounded
header parser is in core (`core/_safetensors.py`), since a pack's weights are such a file too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from haversack.core._files import (
    explain_write_errors,
    partial_path,
    put_in_place,
    remove,
    remove_stale_partials,
)
from haversack.core._record import DTYPE_OF_KIND, PLAIN_KINDS, plain_name
from haversack.core._safetensors import (
    Header,
    header_bytes,
    map_file,
    parse_header,
    read_header,
    unique_names,
)
from haversack.core.errors import DamagedFileError, UserError, nearest_name
from haversack.core.pack import TensorEntry, is_pack
from haversack.formats._pickled import advice_for_folder

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Header", "HubFolder", "SafetensorsFile", "parse_header", "read_header", "write_safetensors"]

CONFIG_MOST = 4 * 2**20
INDEX_MOST = 64 * 2**20
_KIND_OF_DTYPE = {DTYPE_OF_KIND[kind]: kind for kind in PLAIN_KINDS}


class SafetensorsFile:
    """One safetensors file as a `TensorSource`; made by `SafetensorsFile.open`. `metadata` holds its
    texts."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.metadata = header.metadata
        self.tensors: dict[str, TensorEntry] = {
            entry.name: TensorEntry(
                entry.name,
                _KIND_OF_DTYPE.get(entry.dtype, entry.dtype.lower()),
                entry.shape,
                None,
                "rows-1",
                path.name,
                entry.offset,
                entry.nbytes,
            )
            for entry in header.entries
        }
        self._size = header.data_start + sum(entry.nbytes for entry in header.entries)
        self._mapped: memoryview | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Raises UserError when the file cannot be read, DamagedFileError when its header does not hold."""
        return cls(Path(path), read_header(Path(path)))

    @property
    def files(self) -> tuple[Path, ...]:
        """The file itself."""
        return (self.path,)

    def bytes(self, name: str) -> memoryview:
        """The tensor's bytes as a read-only view of the mapped file. Raises UserError for an unknown name."""
        entry = self.tensors.get(name)
        if entry is None:
            raise _unknown_tensor(self.path, name, self.tensors)
        if self._mapped is None:
            self._mapped = map_file(self.path, self._size)
        return self._mapped[entry.offset : entry.offset + entry.nbytes]


class HubFolder:
    """A checkpoint folder in the hub's own format as a `TensorSource`; made by `HubFolder.open`.

    `config` is config.json. `tensors` are those of model.safetensors, or of all the files that
    model.safetensors.index.json names.
    """

    def __init__(self, path: Path, config: dict[str, Any], shards: dict[str, SafetensorsFile]) -> None:
        self.path = path
        self.config = config
        self._shards = shards
        self.tensors: dict[str, TensorEntry] = {
            name: entry for shard in shards.values() for name, entry in shard.tensors.items()
        }

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a checkpoint folder; only headers and config.json are read.

        Raises UserError, naming what is missing and what to do: no folder, no config.json, pickled weights
        only, files the index names and the folder lacks. Raises DamagedFileError for a config, index or
        header that does not hold.
        """
        folder = Path(path)
        if not folder.is_dir():
            what = "is a file; give the folder it lies in" if folder.exists() else "does not exist"
            raise UserError(f"{folder} {what}.", field="model", given=str(folder))
        if is_pack(folder):
            raise UserError(f"{folder} is a pack, not a checkpoint folder.", field="model", given=str(folder))
        names = _weight_files(folder)
        config = read_json(folder / "config.json", CONFIG_MOST)
        index = folder / "model.safetensors.index.json"
        shards = {name: SafetensorsFile.open(folder / name) for name in names}
        if names == ("model.safetensors",):
            return cls(folder, config, shards)
        for name, file in _weight_map(index).items():
            if name not in shards[file].tensors:
                raise DamagedFileError(
                    folder / file, f"the tensor {name} that {index.name} promises is missing"
                )
        seen: dict[str, str] = {}
        for file, shard in shards.items():
            for name in shard.tensors:
                if name in seen:
                    raise DamagedFileError(folder / file, f"the tensor {name} is also in {seen[name]}")
                seen[name] = file
        return cls(folder, config, shards)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors."""
        return tuple(shard.path for shard in self._shards.values())

    def file(self, name: str) -> Path | None:
        """Another file of the folder (generation_config.json, LICENSE), or None when it has none of that
        name."""
        path = self.path / name
        return path if path.is_file() else None

    def bytes(self, name: str) -> memoryview:
        """The tensor's bytes as a read-only view of the mapped file. Raises UserError for an unknown name."""
        entry = self.tensors.get(name)
        if entry is None:
            raise _unknown_tensor(self.path, name, self.tensors)
        return self._shards[entry.file].bytes(name)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, str, tuple[int, ...], Buffer]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file atomically: (name, kind of f32 f16 bf16 u8 i32, shape, bytes) in the order
    given, data starting at a multiple of 4096. Raises ValueError when bytes and shape disagree, UserError
    when the disk is full."""
    goal = Path(path)
    described, views = [], []
    for name, kind, shape, data in tensors:
        view = memoryview(data).cast("B")
        described.append((name, DTYPE_OF_KIND[kind], shape, view.nbytes))
        views.append(view)
    header = header_bytes(described, metadata)
    parse_header(header[8:], sum(view.nbytes for view in views))
    with explain_write_errors(goal):
        remove_stale_partials(goal)
        partial = partial_path(goal)
        try:
            with partial.open("wb") as file:
                file.write(header)
                for view in views:
                    file.write(view)
                file.flush()
                os.fsync(file.fileno())
            put_in_place(partial, goal)
        except BaseException:
            remove(partial)
            raise


def read_json(path: Path, most: int) -> dict[str, Any]:
    """A JSON file of at most `most` bytes that holds one table. Raises UserError when it is missing,
    DamagedFileError when it is too long, not UTF-8, not JSON, nested too deeply, names something twice or is
    no table."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent} has no {path.name}.", field="model", given=str(path.parent)
        ) from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", field="model", given=str(path)
        ) from error
    if len(data) > most:
        raise DamagedFileError(path, f"it is longer than {most // 2**20} MiB")
    try:
        record = json.loads(data.decode("utf-8"), object_pairs_hook=unique_names)
    except RecursionError as error:
        raise DamagedFileError(path, "it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise DamagedFileError(path, f"it is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise DamagedFileError(path, f"it is not JSON ({error.msg} at line {error.lineno})") from error
    except ValueError as error:
        raise DamagedFileError(path, str(error)) from error
    if not isinstance(record, dict):
        raise DamagedFileError(path, "it is not a table of names and values")
    return record


def _weight_files(folder: Path) -> tuple[str, ...]:
    """The names of the folder's weight files. Raises UserError with advice when there are none we may
    read."""
    if (folder / "model.safetensors").is_file():
        return ("model.safetensors",)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = tuple(dict.fromkeys(_weight_map(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of the {len(names)} files that {index.name} names: "
                f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; download it again.",
                field="model",
                given=str(folder),
            )
        return names
    raise UserError(f"{folder} has no model.safetensors{_advice(folder)}.", field="model", given=str(folder))


def _advice(folder: Path) -> str:
    if pickled := advice_for_folder(folder):
        return pickled
    if (folder / "adapter_config.json").is_file():
        return "; it is an adapter: pack its base with --adapter"
    others = sorted(found.name for found in folder.glob("*.safetensors"))
    if others:
        return f"; it has {others[0]}: rename it to model.safetensors if it is the whole model"
    if any(folder.glob("*.gguf")):
        return "; it has a .gguf file, which is not a checkpoint folder"
    return ""


def _weight_map(index: Path) -> dict[str, str]:
    named = read_json(index, INDEX_MOST).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise DamagedFileError(index, "it has no weight_map")
    for name, file in named.items():
        if not isinstance(file, str) or not plain_name(file) or not file.endswith(".safetensors"):
            what = f"it places the tensor {name[:80]} in {str(file)[:80]!r}, which is no weight file"
            raise DamagedFileError(index, what)
    return named


def _unknown_tensor(path: Path, name: str, known: Iterable[str]) -> UserError:
    nearest = nearest_name(name, known)
    hint = f"; the nearest is {nearest}" if nearest else ""
    return UserError(f"{path} holds no tensor {name}{hint}.", field="tensor", given=name, nearest=nearest)
