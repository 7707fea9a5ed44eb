"""Trains `digits` and `digits-small`, two Whispers that write down spoken strings of digits.

    OMP_WAIT_POLICY=passive python reference/train_digits.py --work DIR [--size small|base] [--data PATH]
    [--out DIR]

About five minutes on two quiet cores with AVX-512 bfloat16 for small, and six more for base, which grows out
of it. Killed runs resume from their last checkpoint in DIR. PATH is a folder or an archive of the spoken
digits, by default the registry's (see docs/data.md).
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from code_recipe import fingerprint
from digits_export import export_folder
from digits_grow import grown
from digits_recipe import BLANK, IGNORED, VOCABULARY, Batches, Recipe, Shape
from haversack.core._datasets import dataset_path
from haversack.models._train_loop_torch import (
    Loss,
    Schedule,
    Trainer,
    computing,
    keep_freed_memory,
    log_to,
)
from haversack.models.audio._spoken_digits import Recording, read_recordings

MODELS = Path(__file__).resolve().parents[1] / "src" / "haversack" / "reference_models"
NAMES = {"small": "digits-small", "base": "digits"}
RECIPES = {
    "small": Recipe(Shape(64, 2, 256), Schedule(steps=1500, descent_share=0.5)),
    "base": Recipe(
        Shape(160, 4, 480),
        Schedule(steps=600, matrix_rate=0.003, other_rate=0.001, warm_up_steps=30, descent_share=0.7),
        rows=16,
        grown_from="small",
    ),
}
POSITIONS = "whisper.model.encoder.embed_positions.weight"


class Learner(nn.Module):
    """The Whisper, and while it learns a second reading of its encoder: which digit is said when.

    The second loss is connectionist temporal classification (Graves et al., 2006): it teaches the encoder
    the order of the digits, from which attention learns where to look. Its weights are dropped at the end.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.whisper = WhisperForConditionalGeneration(shape.hub_config())
        self.alignment = nn.Linear(shape.width, BLANK + 1)
        # Sinusoids are not learnt: as a buffer they are out of the optimizers' way.
        positions = self.whisper.model.encoder.embed_positions
        table = positions.weight.detach()
        del positions.weight
        positions.register_buffer("weight", table)

    def states(self, features: Tensor) -> Tensor:
        """The encoder's states [rows, frames / 2, width], of a window of any length."""
        encoder = self.whisper.model.encoder
        hidden = nn.functional.gelu(encoder.conv1(features))
        hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        hidden = nn.functional.dropout(hidden, encoder.dropout, self.training)
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        normal: Tensor = encoder.layer_norm(hidden)
        return normal

    def forward(self, features: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [rows, tokens, vocabulary] and log-probabilities of the digits [frames / 2, rows, 11]."""
        states = self.states(features)
        answer = self.whisper(encoder_outputs=(states,), decoder_input_ids=read, use_cache=False)
        by_time = self.alignment(states).float().log_softmax(-1)
        return answer.logits.float(), by_time.transpose(0, 1)


def loss_function(learner: Learner, batches: Batches, device: torch.device) -> Loss:
    """Cross-entropy of the tokens to say, plus a share of the alignment loss."""
    share = batches.recipe.alignment_share

    def loss(step: int) -> Tensor:
        torch.manual_seed(1000 * batches.recipe.seed + step)  # dropout: the same when a run is resumed
        features, read, said, digits = (part.to(device) for part in batches.rows(step))
        with computing(device):
            logits, by_time = learner(features, read)
        spoken = nn.functional.cross_entropy(logits.flatten(0, 1), said.flatten(), ignore_index=IGNORED)
        lengths = torch.full((len(features),), by_time.shape[0])
        aligned = nn.functional.ctc_loss(
            by_time, digits.clamp(min=0), lengths, (digits >= 0).sum(1), blank=BLANK
        )
        return spoken + share * aligned

    return loss


def run_folder(recordings: Sequence[Recording], recipe: Recipe, work: Path) -> Path:
    """Where a run keeps its state, by what it is made from."""
    heard = hashlib.sha256()
    for one in recordings:
        heard.update(f"{one.speaker} {one.digit} {one.index}".encode() + one.samples.tobytes())
    return work / f"digits-{fingerprint(heard.hexdigest(), asdict(recipe), torch.get_num_threads())}"


def learn(
    recordings: Sequence[Recording],
    recipe: Recipe,
    work: Path,
    checkpoint_seconds: float = 60.0,
    stop_after: int | None = None,
) -> dict[str, Tensor]:
    """Train, or go on training, and return the averaged weights of the `Learner`, positions included.

    A recipe that grows out of another is preceded by that one.
    """
    folder = run_folder(recordings, recipe, work)
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    learner = Learner(recipe.shape).train()
    if recipe.grown_from is not None:
        other = RECIPES[recipe.grown_from]
        smaller = learn(recordings, other, work, checkpoint_seconds)
        generator = torch.Generator().manual_seed(recipe.seed)
        wanted = {**dict(learner.named_parameters()), POSITIONS: learner.state_dict()[POSITIONS]}
        # Not strict: the output matrix is the embedding under another name.
        learner.load_state_dict(grown(smaller, wanted, other.shape, generator), strict=False)
    learner.to(device)
    parameters = sum(value.numel() for value in learner.whisper.parameters())
    print(f"{parameters:,} parameters, {len(recordings):,} recordings, {device}, {folder}", flush=True)
    trainer = Trainer(learner, recipe.schedule, folder, recipe.average_half_life_steps)
    loss = loss_function(learner, Batches(recordings, recipe), device)
    trainer.run(loss, checkpoint_seconds, log_to(folder / "log.jsonl"), stop_after)
    return {**trainer.average, POSITIONS: learner.state_dict()[POSITIONS]}


def train(
    recordings: Sequence[Recording],
    recipe: Recipe,
    work: Path,
    checkpoint_seconds: float = 60.0,
    stop_after: int | None = None,
) -> dict[str, Tensor]:
    """`learn`, and of its answer the weights of the Whisper."""
    found = learn(recordings, recipe, work, checkpoint_seconds, stop_after)
    return {
        name.removeprefix("whisper."): value for name, value in found.items() if name.startswith("whisper.")
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("reference-work"), help="folder of the intermediates"
    )
    parser.add_argument("--size", choices=tuple(RECIPES), default="base")
    parser.add_argument("--data", type=Path, default=None, help="folder or archive of the recordings")
    parser.add_argument("--out", type=Path, default=None, help="default: where the package keeps the model")
    parser.add_argument(
        "--threads", type=int, default=2, help="of the CPU; part of what makes a run repeatable"
    )
    parser.add_argument(
        "--stop-after", type=int, default=None, help="end after this many steps, to go on later"
    )
    arguments: Any = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    recipe = RECIPES[arguments.size]
    recordings = read_recordings(arguments.data or dataset_path("spoken-digits"))
    weights = train(recordings, recipe, arguments.work, stop_after=arguments.stop_after)
    out = arguments.out or MODELS / NAMES[arguments.size]
    export_folder(out, recipe.shape.hub_config(), weights, VOCABULARY)


if __name__ == "__main__":
    main()
