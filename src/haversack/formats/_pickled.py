"""Pickled weights (`pytorch_model.bin`, `.pt`, `.pth`, `.ckpt`) are never opened: reading one runs any code.

What is here tells them by name and words the command that turns them into safetensors.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from haversack.core.errors import UserError

ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_WHY = "a pickle, which can run any code when it is read, so it is refused"
_TENSORS = (
    "import sys, torch; from safetensors.torch import save_file; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
    "save_file({k: v.clone().contiguous() for k, v in d.items()}, sys.argv[2])"
)


def pickled_files(folder: Path) -> list[Path]:
    """The files of `folder` that are pickles by their names, those of a hub checkpoint first."""
    found = [path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file()]
    return sorted(found, key=lambda path: (not path.name.startswith("pytorch_model"), path.name))


def advice_for_folder(folder: Path) -> str:
    """`; FILE is a pickle ...: COMMAND` for a folder with pickled weights, nothing for one without."""
    found = pickled_files(folder)
    if not found:
        return ""
    command = _tensor_command(found[0])
    if found[0].name.startswith("pytorch_model") and (folder / "config.json").is_file():
        command = _model_command(folder)
    return f"; {found[0].name} is {_WHY}; convert it (needs haversack[workshop]): {command}"


def refuse_file(path: Path) -> UserError:
    """The error for a pickled file that was given as a model."""
    return UserError(
        f"{path} is {_WHY}; convert it (needs haversack[workshop]): {_tensor_command(path)} "
        "and give the folder, with its config.json and tokenizer files.",
        field="model",
        given=str(path),
        nearest=str(path.parent),
    )


def _model_command(folder: Path) -> str:
    """transformers reads the checkpoint as the class its config names and writes it as safetensors."""
    name = "AutoModelForCausalLM"
    try:
        said = json.loads((folder / "config.json").read_bytes()[: 4 << 20])["architectures"][0]
        if isinstance(said, str) and said.isidentifier():
            name = said
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        pass
    program = (
        f"import sys; from transformers import {name} as M; "
        "M.from_pretrained(sys.argv[1], use_safetensors=False).save_pretrained(sys.argv[1])"
    )
    return f"python -c {shlex.quote(program)} {shlex.quote(str(folder))}"


def _tensor_command(path: Path) -> str:
    goal = path.with_name("model.safetensors")
    return f"python -c {shlex.quote(_TENSORS)} {shlex.quote(str(path))} {shlex.quote(str(goal))}"
