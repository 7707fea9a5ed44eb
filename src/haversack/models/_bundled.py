"""Where a model is found: by the name of one that ships, or by the path of a checkpoint folder."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from haversack.core.errors import UserError, nearest_name
from haversack.formats._pickled import ENDINGS, refuse_file

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def bundled_names() -> tuple[str, ...]:
    """The models that ship with the package."""
    folder = files("haversack").joinpath("reference_models")
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.joinpath("config.json").is_file()))


def model_folder(name: str) -> Path:
    """The checkpoint folder that `name` means: a bundled model, or a path.

    Raises UserError, saying what works, for a name of neither kind.
    """
    known = bundled_names()
    if name in known:
        return Path(str(files("haversack").joinpath("reference_models", name)))
    path = Path(name)
    if path.is_dir():
        return path
    works = (
        f"give a bundled model ({', '.join(known) or 'none is installed'}) or a checkpoint folder (./NAME)"
    )
    if path.suffix == ".gguf":
        raise UserError(f"{name}: .gguf files cannot be packed yet; {works}.", field="model", given=name)
    if path.is_file() and path.suffix in ENDINGS:
        raise refuse_file(path)
    if path.is_file():
        raise UserError(f"{name} is a file; {works}.", field="model", given=name, nearest=str(path.parent))
    if HUB_NAME.fullmatch(name) and not name.startswith("."):
        raise UserError(
            f"{name}: no such folder, and models are not fetched from a hub yet; download it and {works}.",
            field="model",
            given=name,
        )
    nearest = nearest_name(name, known)
    hint = f" Did you mean {nearest}?" if nearest else ""
    raise UserError(f"there is no model {name!r}; {works}.{hint}", field="model", given=name, nearest=nearest)
