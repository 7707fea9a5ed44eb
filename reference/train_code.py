"""Trains `code`, a Llama of about 8 million parameters that completes Python.

    OMP_WAIT_POLICY=passive python reference/train_code.py --work DIR [--stdlib DIR] [--size small|large]
    [--out DIR]

About half an hour on two quiet cores with AVX-512 bfloat16. Killed runs resume from their last
checkpoint in DIR, where all intermediates live under a hash of what they were made from. `large` is for a
GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from code_export import export_folder
from code_recipe import Recipe, Stage, Windows, fingerprint, make_tokenizer, model_of
from code_text import read_text
from code_tokenizer import token_stream
from haversack.models._train_loop_torch import (
    CrossEntropy,
    Loss,
    Schedule,
    Trainer,
    compute_type,
    computing,
    keep_freed_memory,
    log_to,
)
from haversack.models.language.llama_torch import Llama, LlamaShape

OUT = Path(__file__).resolve().parents[1] / "src" / "haversack" / "reference_models" / "code"
RECIPES = {
    "small": Recipe(
        LlamaShape(vocabulary=5120, width=384, layers=4, heads=6, key_value_heads=2, feed_forward=1024),
        Schedule(steps=800, descent_share=0.52),
        (Stage(0, 16, 512), Stage(600, 8, 1024), Stage(715, 4, 2048)),
    ),
    "large": Recipe(
        LlamaShape(vocabulary=16384, width=768, layers=12, heads=12, key_value_heads=4, feed_forward=2048),
        Schedule(steps=6000),
        (Stage(0, 64, 512), Stage(4000, 16, 2048)),
    ),
}


def loss_function(model: Llama, windows: Windows, device: torch.device, compiled: bool) -> Loss:
    """Cross-entropy of a step's rows, with float32 sums."""
    hidden: Callable[[torch.Tensor], torch.Tensor] = model.hidden
    if compiled:
        hidden = torch.compile(model.hidden, dynamic=False)

    def loss(step: int) -> torch.Tensor:
        tokens, targets = (part.to(device) for part in windows.rows(step))
        with computing(device):
            states = hidden(tokens).to(compute_type(device))
        return CrossEntropy.apply(states.flatten(0, 1), model.model.embed_tokens.weight, targets.flatten())

    return loss


LossMaker = Callable[[Any, Windows, torch.device, bool], Loss]


def train(
    texts: list[tuple[str, str]],
    tokenizer: Tokenizer,
    recipe: Recipe,
    work: Path,
    compiled: bool = True,
    checkpoint_seconds: float = 240.0,
    stop_after: int | None = None,
    name: str = "code",
    loss_of: LossMaker = loss_function,
) -> dict[str, torch.Tensor]:
    """Train, or go on training, and return the averaged weights."""
    stream = token_stream(tokenizer, texts)
    folder = work / f"{name}-{fingerprint(texts, asdict(recipe), torch.get_num_threads(), not compiled)}"
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model_of(recipe.shape)
    model.initialize(recipe.seed)
    model.to(device)
    parameters = sum(value.numel() for value in model.parameters())
    print(f"{parameters:,} parameters, {len(stream):,} tokens of text, {device}, {folder}", flush=True)
    trainer = Trainer(model, recipe.schedule, folder, recipe.average_half_life_steps)
    loss = loss_of(model, Windows(stream, recipe.stages, recipe.seed), device, compiled)
    trainer.run(loss, checkpoint_seconds, log_to(folder / "log.jsonl"), stop_after)
    return trainer.average


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("reference-work"), help="folder of the intermediates"
    )
    parser.add_argument("--stdlib", type=Path, default=None, help="default: that of the running interpreter")
    parser.add_argument("--size", choices=tuple(RECIPES), default="small")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--threads", type=int, default=2, help="of the CPU; part of what makes a run repeatable"
    )
    parser.add_argument(
        "--eager", action="store_true", help="do not compile the model (slower, needs no g++)"
    )
    parser.add_argument(
        "--stop-after", type=int, default=None, help="end after this many steps, to go on later"
    )
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    recipe = RECIPES[arguments.size]
    texts = read_text(arguments.stdlib)["train"]
    tokenizer = make_tokenizer(texts, recipe.shape.vocabulary, arguments.work)
    weights = train(
        texts, tokenizer, recipe, arguments.work, not arguments.eager, stop_after=arguments.stop_after
    )
    export_folder(arguments.out, recipe.shape, weights, tokenizer)


if __name__ == "__main__":
    main()
