"""The paper's own router: a causal language model with a binary classifier on a state's last token.

Any decoder checkpoint in safetensors serves (the paper's has 0.5 billion parameters). Learning is in
`_hera_lm_torch.py`: low-rank factors beside the matrices, and the classifier. What is kept is a folder: the
checkpoint with the factors merged, and `router.safetensors` with the classifier; deciding needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core._safetensors import header_bytes
from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.safetensors import SafetensorsFile
from haversack.models._tokenizer import Tokenizer
from haversack.run._embed import embed
from haversack.run._engine import Engine
from haversack.run._source import Model
from haversack.share._hera_episodes import Step
from haversack.share._hera_router import episodes_of, imitated, states_by_key
from haversack.share._hera_states import last_tokens, state_text
from haversack.share._routing import Asked
from haversack.share.hera import Hera, group, labelled

F32 = npt.NDArray[np.float32]
HEAD = "router.safetensors"
FORMAT = "haversack-language-router 1"
TOKENS = 512
"""Most tokens of a state that are read; its earliest are left out."""


def chance(hidden: F32, weight: F32, bias: float) -> float:
    """sigmoid(weight . hidden + bias) of the last token's state [width]."""
    logit = float(hidden.astype(np.float64) @ weight.astype(np.float64)) + bias
    return float(1 / (1 + np.exp(-min(max(logit, -30.0), 30.0))))


class LanguageRouter:
    """A step router that reads a state as text; made by `open`."""

    kind = "step"

    def __init__(self, engine: Engine, weight: F32, bias: float) -> None:
        self.engine, self.weight, self.bias = engine, weight, bias
        self._tokenizer = engine.model.tokenizer()

    @classmethod
    def open(cls, folder: Path) -> LanguageRouter:
        """A folder that learning wrote. Raises UserError or DamagedFileError for one that is none."""
        if not (folder / HEAD).is_file():
            raise UserError(
                f"{folder} has no {HEAD}; write one with: haversack share learn-steps --model CHECKPOINT",
                field="router",
                given=str(folder),
            )
        weight, bias = read_head(folder / HEAD)
        engine = Engine.open(folder)
        if len(weight) != engine.architecture.width:
            wide = engine.architecture.width
            raise DamagedFileError(
                folder / HEAD, f"its classifier is for a width of {len(weight)} and the model has {wide}"
            )
        return cls(engine, weight, bias)

    def p_cloud(self, asked: Asked) -> float:
        """The chance that the cloud is needed."""
        text = read_of(asked, self.engine.context_length, self._tokenizer)
        state = embed(self.engine, [text], pooling="last", normalized=False, tokenizer=self._tokenizer)[0]
        return chance(state, self.weight, self.bias)

    route = p_cloud


def read_of(asked: Asked, context: int, tokenizer: Tokenizer) -> str:
    """What is read of a state: its text's end, at most TOKENS tokens."""
    return last_tokens(state_text(asked), min(TOKENS, context - 1), tokenizer)


def head_file(weight: F32, bias: float) -> bytes:
    """`router.safetensors`."""
    tensors = [("weight", np.ascontiguousarray(weight, "<f4")), ("bias", np.array([bias], "<f4"))]
    header = header_bytes(
        [(n, "F32", v.shape, v.nbytes) for n, v in tensors], {"format": FORMAT, "kind": "step"}
    )
    return header + b"".join(value.tobytes() for _, value in tensors)


def read_head(path: Path) -> tuple[F32, float]:
    """(weight [width], bias). Raises DamagedFileError for another file."""
    file = SafetensorsFile.open(path)
    if file.metadata.get("format") != FORMAT:
        raise DamagedFileError(path, f"it is no classifier of this version ({FORMAT!r})")
    values = {}
    for name in ("weight", "bias"):
        entry = file.tensors.get(name)
        if entry is None or entry.kind != "f32" or len(entry.shape) != 1 or entry.shape[0] == 0:
            raise DamagedFileError(path, f"its tensor {name} is no vector of f32")
        values[name] = np.frombuffer(file.bytes(name), "<f4").astype(np.float32)
        if not np.isfinite(values[name]).all():
            raise DamagedFileError(path, f"its tensor {name} holds what is no number")
    return values["weight"], float(values["bias"][0])


def learn_language(
    model: Model, steps: Sequence[Step], goal: Path, method: Hera, seed: int = 0
) -> dict[str, Any]:
    """Both stages from recorded steps, by the labels and weights of the small router; writes the folder
    `goal`.

    Raises UserError as `StepRouter.fit_imitation` does, ImportError without PyTorch.
    """
    from haversack.share._hera_lm_torch import LanguageLearning, fit_language

    learning = LanguageLearning(model, seed=seed)
    found: dict[str, Any] = {"notes": []}
    if method.stages != "outcomes":
        states, labels, weights = imitated(steps)
        fit_language(learning, states, labels, weights, epochs=method.imitation_epochs, seed=seed)
        found["imitation"] = {"steps": len(labels), "differ": sum(labels)}
    if method.stages != "imitation":
        episodes = episodes_of(steps)
        states, chances, weights = labelled(states_by_key(episodes), group(episodes), method)
        found["outcomes"] = {"states": len(states), "for_cloud": sum(chance > 0.5 for chance in chances)}
        if states:
            anchor = {name: value.detach().clone() for name, value in learning.named_parameters()}
            fit_language(
                *(learning, states, chances, weights),
                epochs=method.outcome_epochs,
                seed=seed,
                anchor=anchor,
                hold=method.hold,
            )
        else:
            found["notes"].append("no state was visited with both decisions; outcomes taught nothing")
    learning.save(goal)
    return found
