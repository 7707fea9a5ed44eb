"""FlexSpec's draft: a frozen anchor of the target and one trained block, right for every later version of it.

Paper: "FlexSpec: Frozen Drafts Meet Evolving Targets in Edge-Cloud Collaborative LLM Speculative
Decoding" (arXiv 2601.00644, 2026). The abstract says that draft and targets share a frozen backbone; what
follows here is [inferred] from it, no code being public.
What is here: the anchor is the target's embedding, its lowest m blocks (default: a quarter), its last norm
and its output matrix. The draft is the anchor with one block on top, the *bridge*, which begins as the
target's block m and alone learns, once, from what the base target T0 says of a text:

    KL(p_T0 || p_D) + 0.1 x mean square of (h_D - h_T0),   h: what meets the output matrix

In every second step T0's blocks above the anchor are changed by random low-rank matrices of 2 % of their norm
(evolution augmentation), so that the bridge does not fit one version too closely. The draft is written as an
ordinary checkpoint, the bridge being its block m, so the engine runs it and `pack` packs it like any other.
`rank` keeps the bridge's feed-forward matrices as two factors.
What we changed: the bridge does not begin at random but as a block of the target whose last matrix is fitted
by least squares to what the target's last block gives, which saves most of the steps; the mean square is over
the numbers of h, whose scale the last norm fixes. Muon learns the matrices.
Cost: one pass of the target over the text, forward and back through one block and the output matrix.
Limits: targets that keep the anchor; dense Llama, Mistral, Qwen2 and Qwen3; PyTorch (extra workshop).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from haversack.core.errors import UserError, not_allowed
from haversack.core.memory import MemoryPlan
from haversack.core.progress import Progress
from haversack.models._adapter import adapted_matrices
from haversack.models._architecture import Architecture, FeedForward
from haversack.models._family import FamilyEntry, default_layers, make_family
from haversack.models._hub_write import check_folder_goal
from haversack.models.language import read_architecture
from haversack.run._source import Model, open_model
from haversack.train._texts import Texts, texts_for
from haversack.train._training import (
    Learning,
    Report,
    finished,
    floats_only,
    memory_plan,
    torch_part,
    training_folder,
    weights_crc32,
)

SYSTEM = 42
STARTS = ("fitted", "block")
FAMILY_MARK = "family.json"


@dataclass(frozen=True)
class Bridge:
    """What is trained on top of the anchor, and against what.

    `anchor_layers` None: a quarter of the target's blocks. `rank` None: whole feed-forward matrices. `mse`
    weighs the hidden states; `evolution` is the relative norm of the random changes of the target (0: none),
    `evolution_rank` their rank. `temperature` divides the target's logits: below 1 favours its first choice.
    `start`: "block", the target's block above the anchor, or "fitted", that block with its last matrix fitted
    to what the target's last block gives.
    """

    anchor_layers: int | None = None
    rank: int | None = None
    mse: float = 0.1
    evolution: float = 0.02
    evolution_rank: int = 8
    temperature: float = 1.0
    start: str = "fitted"

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise not_allowed("start", self.start, STARTS)
        for name in ("mse", "evolution"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(f"{name}={value} is below 0.", field=name, given=value, nearest=0)
        if not 0 < self.temperature < math.inf:
            raise UserError(
                f"temperature={self.temperature} is not above 0.",
                field="temperature",
                given=self.temperature,
                nearest=1.0,
            )
        for name in ("rank", "evolution_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} is below 1.", field=name, given=value, nearest=1)


@dataclass(frozen=True)
class Drafted:
    """A written draft: its folder, its family, what training did, its bytes and how many of them the target
    has too."""

    path: Path
    family: FamilyEntry
    report: Report
    nbytes: int
    shared_nbytes: int
    memory: MemoryPlan = field(repr=False)

    def record(self) -> dict[str, Any]:
        """As `train draft --json` prints it."""
        return {
            "output": str(self.path),
            "family": {name: getattr(self.family, name) for name in FAMILY_FIELDS},
            "nbytes": self.nbytes,
            "shared_nbytes": self.shared_nbytes,
            **self.report.record(),
        }


FAMILY_FIELDS = ("name", "anchor_sha256", "anchor_layers")


def draft_config(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """config.json of the anchor of `layers` blocks with one block more, which is like block `layers` of the
    target."""
    found = {**config, "num_hidden_layers": layers + 1}
    types = config.get("layer_types")
    if isinstance(types, list):
        found["layer_types"] = types[: layers + 1]
    return found


def bridge_shapes(architecture: Architecture, layers: int, rank: int | None) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of the bridge; a factored matrix X.weight is X.led.0.weight [rank, inputs] and
    X.led.1.weight [outputs, rank], as models/_factored.py reads them.

    Raises UserError for a rank that saves nothing.
    """
    block = architecture.blocks[layers]
    found = dict(block.tensors())
    if rank is None:
        return found
    for branch in block.branches:
        if not isinstance(branch.layer, FeedForward):
            continue
        for group in branch.layer.products():
            for linear in group:
                most = linear.outputs * linear.inputs // (linear.outputs + linear.inputs)
                if rank > most:
                    raise UserError(
                        f"rank={rank} saves nothing of {linear.weight} (allowed 1 to {most}).",
                        field="rank",
                        given=rank,
                        nearest=most,
                    )
                module = linear.weight.removesuffix(".weight")
                del found[linear.weight]
                found[f"{module}.led.0.weight"] = (rank, linear.inputs)
                found[f"{module}.led.1.weight"] = (linear.outputs, rank)
    return found


def train_draft(
    target: str | Path,
    texts: Sequence[Path] | Texts,
    goal: Path,
    *,
    bridge: Bridge = Bridge(),
    learning: Learning = Learning(),
    name: str | None = None,
    bar: Progress | None = None,
    checkpoint_seconds: float = 60.0,
    stop_after: int | None = None,
) -> Drafted | None:
    """Make the family of `target` and train its draft on `texts`, a checkpoint folder at `goal`.

    An interrupted training goes on from its last checkpoint when it is asked for again. `stop_after` ends
    after so many steps without writing the draft (None is returned). Raises UserError for a target, texts or
    settings that do not go together, MissingExtraError without PyTorch.
    """
    model = open_model(target)
    architecture = model.architecture
    adapted_matrices(architecture)
    layers = default_layers(architecture) if bridge.anchor_layers is None else bridge.anchor_layers
    check_folder_goal(goal, FAMILY_MARK)
    floats_only(model, "a draft")
    family = make_family(model.source, architecture, layers, name or Path(target).resolve().name)
    shapes = bridge_shapes(architecture, layers, bridge.rank)
    if read_architecture(draft_config(_config(model), layers)).blocks[layers] != architecture.blocks[layers]:
        raise UserError(
            f"{model.path}: its blocks differ in ways that a shorter model's config cannot say.",
            field="model",
        )
    part = torch_part("haversack.train.draft_torch", "training a draft")
    texts = texts_for(model, texts, learning.length)
    facts = {
        "job": "draft",
        "family": {name: getattr(family, name) for name in FAMILY_FIELDS},
        "weights": weights_crc32(model),
        "texts": texts.crc32,
        **asdict(bridge),
        **asdict(learning),
    }
    with training_folder(goal, facts) as folder:
        report = part.distil(
            *(model, layers, shapes, texts, bridge, learning, folder),
            goal=goal,
            family=family,
            bar=bar,
            checkpoint_seconds=checkpoint_seconds,
            stop_after=stop_after,
        )
        if report is None:
            return None
        finished(folder)
    whole = (goal / "model.safetensors").stat().st_size
    learned = sum(math.prod(shape) for shape in shapes.values())
    number = {"f32": 4, "f16": 2, "bf16": 2}[model.source.tensors[architecture.embedding].kind]
    return Drafted(
        goal, family, report, whole, whole - learned * number, planned(model, layers, learned, learning)
    )


def planned(model: Model, layers: int, learned: int, learning: Learning) -> MemoryPlan:
    """Memory of the training of `learned` numbers."""
    above = len(model.architecture.blocks) - layers
    return memory_plan(model.architecture, learned, learning.rows, learning.length, 1 + above // 8)


def _config(model: Model) -> dict[str, Any]:
    config: dict[str, Any] = dict(getattr(model.source, "config", {}))
    return config
