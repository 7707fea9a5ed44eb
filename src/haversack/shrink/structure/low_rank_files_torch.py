"""Factored models on the disk: safetensors with `X.led.0.weight`, and the ranks as JSON to build them again.

Papers: Cahyawijaya, "Greenformers" (2021), for the names; the format is ours.
What is here: `save` writes `model.safetensors`, `low_rank.json` and, for models of transformers,
`config.json`; `load` makes the same layers in a dense model, or in one made from `config.json`, and reads
the weights into it. Tensors that several names share are written once.
Limits: classes of your own must be built by you before `load`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from haversack.core import _files
from haversack.core.errors import DamagedFileError, UserError
from haversack.shrink.structure._factored_torch import CED, CONVOLUTIONS, LED, is_transposed, shape_of, thin

SYSTEM = 38
RANKS, WEIGHTS = "low_rank.json", "model.safetensors"
VERSION = 1


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write the factored `model` into `folder` (made when absent) and return it."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ranks: dict[str, Any] = {}
    firsts: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LED | CED):
            entry: dict[str, Any] = {"rank": module.rank}
            if id(module) in firsts:
                entry["same_as"] = firsts[id(module)]
            firsts.setdefault(id(module), name)
            ranks[name] = entry
    tensors: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            shared[name] = seen[id(tensor)]
            continue
        seen[id(tensor)] = name
        tensors[name] = tensor.detach().to("cpu").contiguous().clone()
    partial = folder / f"{WEIGHTS}.partial"
    save_file(tensors, partial, {"format": "pt"})
    partial.replace(folder / WEIGHTS)
    document = {"format": VERSION, "layers": ranks, "shared": shared}
    _files.write_atomically(folder / RANKS, (json.dumps(document, indent=1) + "\n").encode())
    config: Any = getattr(model, "config", None)
    if hasattr(config, "save_pretrained"):
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
    return folder


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The model that `save` wrote: `model` is its dense form, whose weights are replaced (it is changed).

    Without `model` the class that config.json names is made by transformers. Raises UserError for a folder
    without ranks or a model that they do not fit, DamagedFileError for files that do not hold.
    """
    folder = Path(folder)
    document = _document(folder)
    model = model if model is not None else _of_config(folder)
    made: dict[str, nn.Module] = {}
    for name, entry in document["layers"].items():
        same = entry.get("same_as")
        unit = made[same] if same in made else _empty_unit(model, name, int(entry["rank"]), folder)
        made[name] = unit
    for name, unit in made.items():
        if not name:
            model = unit
            continue
        parent, _, key = name.rpartition(".")
        model.get_submodule(parent)._modules[key] = unit
    _fill(model, folder, document["shared"])
    return model


def _document(folder: Path) -> dict[str, Any]:
    path = folder / RANKS
    if not path.is_file():
        raise UserError(
            f"{folder} has no {RANKS}: it holds no factored model; save writes one.",
            field="folder",
            given=str(folder),
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        layers, shared = document["layers"], document["shared"]
        sound = document["format"] == VERSION and all(
            isinstance(entry["rank"], int) and entry["rank"] > 0 for entry in layers.values()
        )
        sound = sound and all(isinstance(name, str) for name in shared.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(path, f"it holds no ranks ({error})") from error
    if not sound:
        raise DamagedFileError(path, f"it is not of format {VERSION}, or a rank is no positive number")
    return dict(document)


def _of_config(folder: Path) -> nn.Module:
    import transformers

    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} has no config.json; build the dense model and give it to load.",
            field="model",
            given=str(folder),
        )
    config = transformers.AutoConfig.from_pretrained(folder)
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, None)
    if kind is None or not issubclass(kind, transformers.PreTrainedModel):
        raise UserError(
            f"config.json names the class {name!r}, which transformers does not have; build the dense "
            "model and give it to load.",
            field="model",
            given=name,
        )
    return kind(config)  # type: ignore[no-any-return]


def _empty_unit(model: nn.Module, name: str, rank: int, folder: Path) -> nn.Module:
    try:
        layer: Any = model.get_submodule(name)
    except AttributeError:
        layer = None
    if type(layer) not in (nn.Linear, *CONVOLUTIONS) and not is_transposed(layer):
        raise UserError(
            f"{folder} has factors of {name}, and in this model that is no layer of the kind; give the model "
            "that was factored, dense.",
            field="model",
            given=name,
        )
    groups = shape_of(layer).groups
    if rank % groups:
        raise DamagedFileError(folder / RANKS, f"{name} has the rank {rank} and {groups} groups")
    first, second = thin(layer, rank)
    for part in (first, second):
        part.to_empty(device=layer.weight.device).to(layer.weight.dtype)
    made = CED(first, second) if isinstance(layer, CONVOLUTIONS) else LED(first, second, is_transposed(layer))
    return made.train(layer.training)


def _fill(model: nn.Module, folder: Path, shared: dict[str, str]) -> None:
    """Read the weights into the model, tie what was shared."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise DamagedFileError(path, f"it holds no tensors ({error})") from error
    present = model.state_dict(keep_vars=True)
    for alias, name in shared.items():
        if alias not in present or name not in present:
            raise DamagedFileError(folder / RANKS, f"it ties {alias} to {name}, and the model lacks one")
        if isinstance(present[name], nn.Parameter):
            parent, _, key = alias.rpartition(".")
            model.get_submodule(parent)._parameters[key] = model.get_parameter(name)
        tensors[alias] = tensors.get(name, present[name])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"the weights in {folder} do not fit this model: {said}", field="model", given=str(folder)
        ) from error
