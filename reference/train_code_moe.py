"""Trains `code-moe`, a SmallThinker of 16 experts and about 15 million parameters that completes Python.

    OMP_WAIT_POLICY=passive python reference/train_code_moe.py --work DIR [--dense] [--stdlib DIR] [--out DIR]

The same text, tokenizer and loop as `code`. `--dense` trains the twin that the card compares with: one expert
as wide as the two that a token takes, on the same tokens in the same order with the same schedule; it is
written to DIR, not shipped. Killed runs resume from their last checkpoint when the command is repeated.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from code_export import export_folder
from code_recipe import Recipe, Stage, Windows, make_tokenizer
from code_text import read_text
from haversack.models._train_loop_torch import (
    CrossEntropy,
    Loss,
    Schedule,
    compute_type,
    computing,
    keep_freed_memory,
)
from haversack.models.language.smallthinker_torch import SmallThinker, SmallThinkerShape
from train_code import OUT as CODE_OUT
from train_code import train

OUT = CODE_OUT.with_name("code-moe")
BALANCE = 0.01
"""What the load-balance loss is multiplied with, as in Switch."""
STEPS = 800
RECIPE = Recipe(
    SmallThinkerShape(
        vocabulary=5120,
        width=256,
        layers=4,
        heads=8,
        key_value_heads=2,
        head_width=64,
        experts=16,
        top=2,
        feed_forward=256,
        window=512,
    ),
    Schedule(steps=STEPS, descent_share=0.52),
    (Stage(0, 16, 512), Stage(STEPS * 3 // 4, 8, 1024), Stage(STEPS * 9 // 10, 4, 2048)),
)


def dense_twin(recipe: Recipe) -> Recipe:
    """The same recipe for a model of one expert as wide as those that a token takes."""
    if not isinstance(recipe.shape, SmallThinkerShape):
        raise TypeError(f"{type(recipe.shape).__name__} has no experts")
    return replace(recipe, shape=recipe.shape.dense())


def balanced_loss(model: SmallThinker, windows: Windows, device: torch.device, compiled: bool) -> Loss:
    """Cross-entropy of a step's rows with float32 sums, and the routers' load balance.

    Only bfloat16 is compiled: PyTorch's compiler knows no grouped product of float32. The router of an only
    expert has nothing to learn: what rounding leaves of its gradient, Muon would make a step of full length.
    """
    for name, value in model.named_parameters():
        if name.endswith("primary_router.weight") and len(value) == 1:
            value.register_hook(torch.zeros_like)
    hidden = model.hidden_and_balance
    if compiled and compute_type(device) == torch.bfloat16:
        hidden = torch.compile(hidden, dynamic=False)

    def loss(step: int) -> torch.Tensor:
        tokens, targets = (part.to(device) for part in windows.rows(step))
        with computing(device):
            states, balance = hidden(tokens)
        rows = states.to(compute_type(device)).flatten(0, 1)
        entropy = CrossEntropy.apply(rows, model.model.embed_tokens.weight, targets.flatten())
        return entropy + BALANCE * balance

    return loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("reference-work"), help="folder of the intermediates"
    )
    parser.add_argument("--dense", action="store_true", help="train the dense twin, into DIR/code-moe-dense")
    parser.add_argument("--stdlib", type=Path, default=None, help="default: that of the running interpreter")
    parser.add_argument("--out", type=Path, default=None)
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
    recipe = dense_twin(RECIPE) if arguments.dense else RECIPE
    name = "code-moe-dense" if arguments.dense else "code-moe"
    texts = read_text(arguments.stdlib)["train"]
    tokenizer = make_tokenizer(texts, recipe.shape.vocabulary, arguments.work)
    weights = train(
        texts,
        tokenizer,
        recipe,
        arguments.work,
        not arguments.eager,
        stop_after=arguments.stop_after,
        name=name,
        loss_of=balanced_loss,
    )
    out = arguments.out or (arguments.work / name if arguments.dense else OUT)
    export_folder(out, recipe.shape, weights, tokenizer)


if __name__ == "__main__":
    main()
