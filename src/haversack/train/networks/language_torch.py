"""A language model with a classifier, in PyTorch; see language.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haversack.core.errors import UserError
from haversack.models._blocks_torch import PLAIN, Hooks, embed
from haversack.run._source import Model
from haversack.train._meter import SAVED
from haversack.train._meter_torch import SavedTensors
from haversack.train._model_torch import FloatModel
from haversack.train._network import F32, Array, Batch, Role, Tokens, Wanted
from haversack.train._slots import AdapterInTraining

HEAD_WEIGHT, HEAD_BIAS = "classifier.weight", "classifier.bias"
ENGINE_NBYTES = 40 << 20
"""What PyTorch takes at its first pass: thread pools and the products' own buffers."""


class LanguageNetwork:
    """See Network in train/_network.py."""

    def __init__(self, model: Model, length: int) -> None:
        self.name = model.path.name
        self.model = FloatModel(model, where=torch.device("cpu"))
        self.architecture = model.architecture
        self.form = Tokens(min(length, self.architecture.context), model.tokenizer())
        self.classes: tuple[str, ...] | None = None
        self.saved_nbytes = 0
        self.hooks: Hooks = PLAIN
        self._adapter: AdapterInTraining | None = None
        self._blocks = self._grouped()
        self._weights: dict[str, Tensor] = {
            name: self.model.weights[name] for group in self._blocks.values() for name in group
        }
        self.new_head(("0", "1"), 0)
        self.classes = None

    def read_tokens(self, length: int) -> None:
        """Read `length` tokens of a text from now on. Raises UserError for one outside 1..context."""
        context = self.architecture.context
        if not 1 <= length <= context:
            raise UserError(
                f"length={length} is outside 1..{context}, the context of {self.name}.",
                field="length",
                given=length,
                nearest=min(max(length, 1), context),
            )
        self.form = Tokens(length, self.form.tokenizer)

    def _grouped(self) -> dict[str, tuple[str, ...]]:
        architecture = self.architecture
        found = {"embedding": tuple(architecture.first_tensors())}
        for block in architecture.blocks:
            found[f"block {block.index}"] = tuple(block.tensors())
        norm = architecture.final_norm
        if norm is not None:
            found["norm"] = tuple(name for name, _ in norm.tensors())
        return found

    def tensors(self) -> dict[str, Array]:
        """See Network."""
        return {name: tensor.detach().numpy() for name, tensor in self._all().items()}

    def roles(self) -> dict[str, Role]:
        """See Network: vectors named bias are biases, other vectors scales."""
        found: dict[str, Role] = {}
        for name, tensor in self._all().items():
            plain: Role = "bias" if name.endswith("bias") else "scale"
            found[name] = "weight" if tensor.ndim > 1 else plain
        return found

    @property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """See Network: embedding, blocks, last norm, head; what learns beside a block's matrices is the
        block's."""
        found = dict(self._blocks)
        if self._adapter is not None:
            for name in self._beside():
                block = f"block {self._block_of[name]}"
                found[block] = (*found[block], name)
        return {**found, "head": (HEAD_WEIGHT, HEAD_BIAS)}

    def new_head(self, classes: tuple[str, ...], seed: int) -> None:
        """See Network."""
        drawn = np.random.default_rng([seed, 0x4EAD])
        values = 0.02 * drawn.standard_normal((len(classes), self.architecture.width))
        self._head = {
            HEAD_WEIGHT: torch.from_numpy(values.astype(np.float32)),
            HEAD_BIAS: torch.zeros(len(classes)),
        }
        self.classes = classes

    def attach(self, adapter: AdapterInTraining, block_of: dict[str, int]) -> tuple[str, ...]:
        """Let `adapter` learn beside the matrices; the names of its tensors here. `block_of`: its parameter
        names -> the block that each belongs to."""
        if self._adapter is not None:
            raise UserError(
                f"{self.name} has a delta with factors beside its matrices already; train from its base, or "
                "use --parameters head.",
                field="parameters",
                nearest="head",
            )
        self._adapter, self.hooks = adapter, adapter.hooks
        self._block_of = block_of
        return tuple(self._beside())

    def logits(self, inputs: Array) -> F32:
        """See Network."""
        with torch.no_grad():
            found: F32 = self._forward(inputs, len(self._blocks)).numpy()
        return found

    def loss(self, batch: Batch) -> float:
        """See Network."""
        with torch.no_grad():
            return float(self._loss(self._forward(batch.inputs, len(self._blocks)), batch))

    def gradients(self, batch: Batch, wanted: Wanted) -> tuple[float, dict[str, F32]]:
        """See Network."""
        everything = self._all()
        learning = {name: everything[name].requires_grad_() for name in wanted}
        try:
            with SavedTensors(beside=everything.values()) as saved:
                loss = self._loss(self._forward(batch.inputs, self._lowest(wanted)), batch)
            self.saved_nbytes = saved.nbytes
            found = torch.autograd.grad(loss, list(learning.values()))
        finally:
            for tensor in learning.values():
                tensor.requires_grad_(False)
        gradients: dict[str, F32] = {}
        for (name, part), gradient in zip(wanted.items(), found, strict=True):
            whole: F32 = gradient.numpy()
            gradients[name] = whole if part is None else part.of(whole)
        return float(loss.detach()), gradients

    def plan(self, wanted: Wanted, rows: int) -> tuple[tuple[str, int], ...]:
        """See Network: the states that a block keeps for each token, by its widths."""
        tokens = rows * self.form.length
        width = self.architecture.width
        lines = [("working set", 4 * tokens * 8 * width), ("engine", ENGINE_NBYTES)]
        if wanted:
            inner = max(linear.outputs for linear in self.architecture.blocks[0].matrices())
            head = rows * (3 * width + 2 * len(self.classes or ("", "")))
            count = len(self.architecture.blocks)
            passed = min(count, max(0, count + 1 - self._lowest(wanted)))
            kept = tokens * (14 * width + 6 * inner) * passed + head
            lines.insert(0, (SAVED, 4 * (kept + self._scores(rows, count - passed))))
        return tuple(lines)

    def _scores(self, rows: int, below: int) -> int:
        """Numbers of attention kept above the lowest `below` blocks where it is written out, all tokens with
        all: windows that are shorter than the texts, scores that are capped."""
        length, found = self.form.length, 0
        for block in self.architecture.blocks[below:]:
            layer = block.attention
            if layer is None:
                continue
            if layer.softcap is not None or (layer.window is not None and layer.window < length):
                found += 3 * rows * layer.heads * length * length
        return found

    def _all(self) -> dict[str, Tensor]:
        return {**self._weights, **self._beside(), **self._head}

    def _beside(self) -> dict[str, Tensor]:
        if self._adapter is None:
            return {}
        return {f"beside.{name}": tensor for name, tensor in self._adapter.module.named_parameters()}

    def _lowest(self, wanted: Wanted) -> int:
        """The place among `_blocks` of the lowest that learns; their number where the head alone does."""
        for place, group in enumerate(self.blocks.values()):
            if any(name in wanted for name in group):
                return place
        return len(self._blocks)

    def _forward(self, inputs: Array, lowest: int) -> Tensor:
        """Logits [n, classes]; what is below the group `lowest` runs without a way back."""
        used = max(1, int((inputs >= 0).sum(axis=1).max(initial=1)))
        tokens = torch.from_numpy(np.maximum(inputs[:, :used], 0).astype(np.int64))
        last = torch.from_numpy(np.maximum((inputs[:, :used] >= 0).sum(axis=1) - 1, 0))
        architecture, weights = self.architecture, self._weights
        with torch.set_grad_enabled(torch.is_grad_enabled() and lowest == 0):
            hidden = embed(architecture, tokens, weights)
        for place, block in enumerate(architecture.blocks, 1):
            with torch.set_grad_enabled(torch.is_grad_enabled() and lowest <= place):
                hidden = self.model.through(hidden, [block], self.hooks, weights)
        states = hidden[torch.arange(len(tokens)), last][:, None]
        with torch.set_grad_enabled(torch.is_grad_enabled() and lowest < len(self._blocks)):
            states = self.model.normed(states)
        return nn.functional.linear(states, self._head[HEAD_WEIGHT], self._head[HEAD_BIAS])

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels))


def attached(network: Any, adapter: AdapterInTraining, chosen: dict[str, tuple[int, int, int]]) -> Any:
    """Names of the tensors of `adapter`, made for `chosen` of lora.py, now beside `network`'s matrices."""
    matrices = sorted(chosen, key=len, reverse=True)
    block_of = {}
    for name, _ in adapter.module.named_parameters():
        matrix = next(each for each in matrices if name.startswith(each.replace(".", "/") + "#"))
        block_of[f"beside.{name}"] = chosen[matrix][0]
    return network.attach(adapter, block_of)
