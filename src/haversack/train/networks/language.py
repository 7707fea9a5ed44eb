"""Language models that tell texts apart: a classifier on the state of a text's last token.

What is here: a float checkpoint of the language engine's families (a bundled one by its name) as a network:
its blocks in PyTorch, and on the last norm's state of the last token a matrix [classes, width] with a bias,
which starts small. A checkpoint has no such classifier of its own, so its head is always new. What a text has
beyond LENGTH tokens, or as many as are asked for within the context, is not read.
Cost: a pass over the tokens; the way back goes down to the lowest block that learns. Limits: decoders in f32
on the processor; PyTorch (extra workshop).
"""

from __future__ import annotations

import json
from pathlib import Path

from haversack.models._bundled import bundled_names
from haversack.train._network import Network

LENGTH = 128
CONFIG_MOST = 4 << 20


def recognises(path: Path) -> bool:
    """Whether `path` is a checkpoint folder whose config names a model type, or the name of a bundled one."""
    if str(path) in bundled_names():
        return True
    config = path / "config.json"
    try:
        if not config.is_file() or config.stat().st_size > CONFIG_MOST:
            return False
        found = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("model_type"), str)


def open_network(path: Path, seed: int) -> Network:
    """The model at `path` with a head of two classes until `new_head` says which. Raises UserError for what
    is no float decoder, MissingExtraError without PyTorch."""
    from haversack.core.errors import UserError
    from haversack.run._source import open_model
    from haversack.train._training import floats_only, torch_part

    model = open_model(str(path))
    if model.architecture.embedding_width != model.architecture.width:
        raise UserError(
            f"{path} is a {model.architecture.family} model with another width inside, which does not learn "
            "from labels here.",
            field="model",
            given=model.architecture.family,
        )
    floats_only(model, "learning from labels")
    part = torch_part("haversack.train.networks.language_torch", "training")
    found: Network = part.LanguageNetwork(model, LENGTH)
    return found
