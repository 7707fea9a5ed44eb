"""Where a model is found: by the name of one that ships, the path of a checkpoint folder or a hub name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from haversack.core.errors import UserError, nearest_name
from haversack.formats._pickled import ENDINGS, refuse_file
from haversack.formats.small_pack import is_small_pack


def bundled_names() -> tuple[str, ...]:
    """The models that ship with the package."""
    folder = files("haversack").joinpath("reference_models")
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.joinpath("config.json").is_file()))


def model_folder(name: str) -> Path:
    """The checkpoint folder that `name` means: a bundled model, a path, or a hub name, which is fetched.

    Raises UserError, saying what works, for a name of neither kind.
    """
    known = bundled_names()
    if name in known:
        return Path(str(files("haversack").joinpath("reference_models", name)))
    path = Path(name)
    if path.is_dir():
        return path
    bundled = ", ".join(known) or "none is installed"
    works = (
        f"give a bundled model ({bundled}), a checkpoint folder (./NAME), a GGUF file (NAME.gguf) or a "
        "hub name (owner/name)"
    )
    if path.suffix == ".gguf" and not path.exists():
        raise UserError(f"there is no file {name}; {works}.", field="model", given=name)
    if path.is_file() and path.suffix in ENDINGS:
        raise refuse_file(path)
    if is_small_pack(path):
        raise UserError(
            f"{name} is a pack of one file, a forecaster or another small network: haversack run {name} "
            "TABLE.csv runs it, embed build compiles it to C.",
            field="model",
            given=name,
        )
    if path.is_file():
        raise UserError(f"{name} is a file; {works}.", field="model", given=name, nearest=str(path.parent))
    if name.partition("@")[0].count("/") == 1 and not name.startswith((".", "/", "~")):
        from haversack.models._hub import fetch

        return fetch(name)
    nearest = nearest_name(name, known)
    hint = f" Did you mean {nearest}?" if nearest else ""
    raise UserError(f"there is no model {name!r}; {works}.{hint}", field="model", given=name, nearest=nearest)
