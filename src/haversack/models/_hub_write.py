"""Writing a checkpoint folder of the hub's format, tensor by tensor, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core._files import (
    explain_write_errors,
    flush_folder,
    partial_path,
    put_in_place,
    remove,
    remove_stale_partials,
)
from haversack.core._record import DTYPE_OF_KIND
from haversack.core._safetensors import header_bytes
from haversack.core.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Buffer

BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "LICENCE",
    "NOTICE",
)
"""Files of a pack or checkpoint that go along into a folder, where it has them."""
CARRIED = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", *BESIDE)
"""The same of a checkpoint folder whose tokenizer is not made anew."""

Tensor = tuple[str, str, tuple[int, ...], int, "Callable[[], Iterable[Buffer]]"]
"""Name, kind, shape, bytes, and what gives the bytes in pieces when their turn comes."""


def check_folder_goal(goal: Path, mark: str) -> None:
    """Raises UserError unless `goal` is free, empty, or a folder that holds the file `mark`: what an earlier
    run wrote there."""
    if not goal.parent.is_dir():
        raise UserError(
            f"{goal} cannot be written: the folder {goal.parent} does not exist.",
            field="output",
            given=str(goal),
        )
    if not os.path.lexists(goal) or (goal.is_dir() and not goal.is_symlink() and not any(goal.iterdir())):
        return
    if goal.is_symlink() or not (goal / mark).is_file():
        raise UserError(
            f"{goal} is there already and has no {mark}, so this command did not write it; choose another "
            "-o.",
            field="output",
            given=str(goal),
        )


def write_folder(
    goal: Path,
    tensors: Iterable[Tensor],
    texts: Mapping[str, str],
    *,
    weights: str = "model.safetensors",
    carry: Path | None = None,
) -> None:
    """Write the folder `goal`: `weights` with `tensors` in the order given, the files `texts`, and what of
    the folder `carry` belongs beside weights. An older `goal` is exchanged in one step.

    Raises UserError when the disk is full or cannot be written.
    """
    listed = list(tensors)
    with explain_write_errors(goal):
        remove_stale_partials(goal)
        partial = partial_path(goal)
        try:
            partial.mkdir()
            for name in CARRIED if carry is not None else ():
                assert carry is not None
                if (carry / name).is_file():
                    shutil.copyfile(carry / name, partial / name)
            for name, text in texts.items():
                (partial / name).write_text(text, encoding="utf-8")
            with (partial / weights).open("wb") as file:
                described = [
                    (name, DTYPE_OF_KIND[kind], shape, nbytes) for name, kind, shape, nbytes, _ in listed
                ]
                file.write(header_bytes(described, {"format": "pt"}))
                for name, _, _, nbytes, pieces in listed:
                    written = sum(file.write(piece) for piece in pieces())
                    if written != nbytes:
                        raise ValueError(f"the tensor {name} needs {nbytes} bytes and {written} were given")
                file.flush()
                os.fsync(file.fileno())
            flush_folder(partial)
            put_in_place(partial, goal)
        except BaseException:
            remove(partial)
            raise


def config_text(config: Mapping[str, Any]) -> str:
    """config.json's content."""
    return json.dumps(dict(config), indent=2) + "\n"
