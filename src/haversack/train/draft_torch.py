"""The bridge of FlexSpec's draft in PyTorch: its parameters, its loss, its training, the folder it becomes.

Paper: FlexSpec (arXiv 2601.00644); see draft.py. All that lies below the bridge is computed once for draft
and target, since they share it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haversack.models._adapter import as_stored
from haversack.models._blocks_torch import PLAIN, Hooks, Point
from haversack.models._factored import RANKS
from haversack.models._factored import VERSION as RANKS_VERSION
from haversack.models._family import FAMILY_FILE, FamilyEntry, family_json
from haversack.models._hub_write import Tensor as Tensors
from haversack.models._hub_write import config_text, write_folder
from haversack.run._source import Model
from haversack.train._losses_torch import divergence
from haversack.train._model_torch import FloatModel, report_of, run_trainer
from haversack.train._texts import Rows, Texts, held_out_rows
from haversack.train._training import HEAD_ROWS, Learning, Report
from haversack.train.draft import Bridge, draft_config
from haversack.train.parameters.lora_torch import Beside, perturbation

HELD_OUT_ROWS = 16
FITTED_POSITIONS = 32
"""For each input of the matrix that is fitted before training."""
RIDGE = 1e-2


class BridgeModule(nn.Module):
    """The bridge's tensors as parameters, their dots written as slashes."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], start: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, values in begun(shapes, start).items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(values))

    def weights(self, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Tensor name -> what the block multiplies with; factored matrices are put together."""
        given = dict(self.named_parameters()) if parameters is None else parameters
        held = {name.replace("/", "."): value for name, value in given.items()}
        found = {name: value for name, value in held.items() if ".led." not in name}
        for name in held:
            if name.endswith(".led.0.weight"):
                module = name.removesuffix(".led.0.weight")
                found[f"{module}.weight"] = held[f"{module}.led.1.weight"] @ held[name]
        return found


def begun(shapes: Mapping[str, tuple[int, ...]], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The bridge before training: the target's block, factored matrices as the nearest of their rank."""
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if ".led." not in name:
            found[name] = start[name].float().clone()
        elif name.endswith(".led.0.weight"):
            module, rank = name.removesuffix(".led.0.weight"), shape[0]
            left, sizes, right = torch.linalg.svd(
                start[f"{module}.weight"].double().cpu(), full_matrices=False
            )
            root = sizes[:rank].sqrt()
            device = start[f"{module}.weight"].device
            found[name] = (root[:, None] * right[:rank]).float().to(device).contiguous()
            found[f"{module}.led.1.weight"] = (left[:, :rank] * root).float().to(device).contiguous()
    return {name: found[name] for name in shapes}


class _Inputs(Hooks):
    """Keeps what one matrix multiplies."""

    def __init__(self, name: str) -> None:
        self.name, self.found = name, torch.empty(0)

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        """See Hooks."""
        if point == (self.name, "input"):
            self.found = tensor
        return tensor


@torch.no_grad()
def fitted_start(model: FloatModel, layers: int, texts: Texts, learning: Learning) -> dict[str, Tensor]:
    """The target's block `layers` with its last matrix fitted by least squares: what the block gives comes as
    near as one matrix can bring it to what the target's last block gives, each position weighing one over
    its mean square, since the last norm takes its size away."""
    block = model.architecture.blocks[layers]
    start = {name: model.weights[name].float().clone() for name in block.tensors()}
    last = block.matrices()[-1]
    gram = torch.zeros(last.inputs, last.inputs, dtype=torch.float64, device=model.device)
    cross = torch.zeros(last.inputs, last.outputs, dtype=torch.float64, device=model.device)
    count = -(-FITTED_POSITIONS * last.inputs // (learning.rows * learning.length))
    rows = Rows(texts.learned, learning.rows, learning.length, learning.seed)
    inputs = _Inputs(last.weight)
    without = {**model.weights, last.weight: torch.zeros_like(model.weights[last.weight])}
    for step in range(count):
        with model.computing():
            low = model.below(model.tokens(rows.at(step)[:, :-1]), layers)
            wanted = model.through(low, model.architecture.blocks[layers:]).flatten(0, 1).float()
            missing = wanted - model.through(low, (block,), inputs, without).flatten(0, 1).float()
        weight = wanted.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
        x = inputs.found.flatten(0, 1).float() * weight
        gram += (x.T @ x).double()
        cross += (x.T @ (missing * weight)).double()
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    start[last.weight] = torch.linalg.solve(gram, cross).T.float().contiguous()
    return start


class Distillation:
    """The loss of a step: what the draft says of its text beside what the target, changed or not, does."""

    def __init__(
        self,
        model: FloatModel,
        layers: int,
        module: BridgeModule,
        texts: Texts,
        bridge: Bridge,
        learning: Learning,
    ) -> None:
        self.model, self.layers, self.module, self.bridge = model, layers, module, bridge
        self.rows = Rows(texts.learned, learning.rows, learning.length, learning.seed)
        self.seed = learning.seed
        upper = model.architecture.blocks[layers:]
        self.upper = [linear.weight for block in upper for linear in block.matrices()]

    def evolved(self, step: int) -> Hooks:
        """The target of `step`: every second one is changed."""
        if step % 2 == 0 or self.bridge.evolution == 0:
            return PLAIN
        generator = torch.Generator().manual_seed((self.seed << 32) + step)
        given = (self.bridge.evolution, self.bridge.evolution_rank, generator)
        return Beside(perturbation(self.model.weights, self.upper, *given))

    def states(self, tokens: Tensor, target: Hooks, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What meets the output matrix, [positions, width], of the draft and of the target."""
        model = self.model
        with model.computing():
            low = model.below(tokens, self.layers)
            with torch.no_grad():
                wanted = model.normed(model.through(low, model.architecture.blocks[self.layers :], target))
            made = model.through(
                low, model.architecture.blocks[self.layers : self.layers + 1], PLAIN, weights
            )
            return model.normed(made), wanted

    def loss(self, step: int) -> Tensor:
        """KL and mean square of the hidden states, of the texts of `step`."""
        tokens = self.model.tokens(self.rows.at(step)[:, :-1])
        made, wanted = self.states(tokens, self.evolved(step), self.module.weights())
        head = self.model.head
        sharpness, compute = self.bridge.temperature, self.model.compute
        found = divergence(made, head, wanted, head, temperature=sharpness, compute=compute)
        return found + self.bridge.mse * (made - wanted).square().mean() if self.bridge.mse else found

    @torch.no_grad()
    def judged(self, rows: Any, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Of held-out texts: the share of positions where the first choices agree, and KL in nats."""
        agreed = count = 0
        total = 0.0
        head = self.model.head
        for row in rows:
            made, wanted = self.states(self.model.tokens(row[None, :-1]), PLAIN, weights)
            total += float(divergence(made, head, wanted, head)) * len(made)
            for start in range(0, len(made), HEAD_ROWS):
                pieces = (one[start : start + HEAD_ROWS].to(head.dtype) for one in (made, wanted))
                ours, theirs = (piece @ head.T for piece in pieces)
                agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            count += len(made)
        return {"agreement": agreed / count, "divergence": total / count}


def distil(
    model: Model,
    layers: int,
    shapes: Mapping[str, tuple[int, ...]],
    texts: Texts,
    bridge: Bridge,
    learning: Learning,
    folder: Path,
    *,
    goal: Path,
    family: FamilyEntry,
    **options: Any,
) -> Report | None:
    """Train the bridge and write the draft at `goal`; None where `stop_after` ended it before."""
    target = FloatModel(model, learning.compute)
    if bridge.start == "block" or (folder / "state.pt").is_file():  # a state holds all that was begun with
        start = {name: target.weights[name] for name in model.architecture.blocks[layers].tensors()}
    else:
        start = fitted_start(target, layers, texts, learning)
    module = BridgeModule(shapes, start)
    lesson = Distillation(target, layers, module, texts, bridge, learning)
    trainer, losses = run_trainer(module, learning, folder, lesson.loss, muon=True, **options)
    if trainer.done_steps < learning.steps:
        return None
    rows = held_out_rows(texts.held_out, HELD_OUT_ROWS, learning.length)
    found = report_of(trainer, learning, losses, lesson.judged(rows, module.weights(trainer.average)))
    write_draft(
        goal, model, layers, {n.replace("/", "."): v for n, v in trainer.average.items()}, family, found
    )
    return found


def write_draft(
    goal: Path, model: Model, layers: int, bridge: Mapping[str, Tensor], family: FamilyEntry, report: Report
) -> None:
    """The draft as a checkpoint folder: the anchor's tensors byte by byte, then the bridge in their number
    type."""
    source: Any = model.source
    kind = source.tensors[model.architecture.embedding].kind
    ranks = {
        name.removesuffix(".led.0.weight"): {"rank": value.shape[0]}
        for name, value in bridge.items()
        if name.endswith(".led.0.weight")
    }

    def stored(name: str) -> Callable[[], list[Any]]:
        return lambda: [source.bytes(name)]

    def held(values: Any) -> Callable[[], list[Any]]:
        return lambda: [values.data.cast("B")]

    def tensors() -> Iterator[Tensors]:
        above = {name for block in model.architecture.blocks[layers:] for name in block.tensors()}
        for name in model.architecture.tensors():
            if name not in above:
                entry = source.tensors[name]
                yield name, entry.kind, entry.shape, entry.nbytes, stored(name)
        for name, value in bridge.items():
            values = np.ascontiguousarray(as_stored(name, value.detach().cpu().numpy(), kind))
            yield name, kind, values.shape, values.nbytes, held(values)

    facts = {"role": "draft", "steps": report.steps, "tokens": report.tokens, **report.held_out}
    texts = {
        "config.json": config_text(draft_config(source.config, layers)),
        FAMILY_FILE: family_json(family, **facts),
    }
    if ranks:
        document = {"format": RANKS_VERSION, "layers": ranks, "shared": {}}
        texts[RANKS] = json.dumps(document, indent=1) + "\n"
    write_folder(goal, tensors(), texts, carry=model.path)
