"""Measures `code-moe` and its dense twin and writes the card (CARD.md).

    python reference/code_moe_card.py --work DIR [--stdlib DIR]

Every number is measured by this command or read from the logs of the training runs in DIR; without the
mixture's own log the line about its training stays as it stands. The twin is what `train_code_moe.py --dense`
left in DIR; without one the card says that it is missing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from code_card import LICENCE, duration, machine, newest, text_lines
from code_moe_evaluate import evaluate
from code_recipe import Recipe
from haversack.kernels import set_threads
from haversack.models._train_loop_torch import compute_type
from haversack.models.language.smallthinker_torch import FULL_EVERY, SmallThinkerShape
from train_code_moe import BALANCE, OUT, RECIPE

BAR = 0.02
"""By how much of its bits the mixture is to be below its twin."""
HEX = 16 * "[0-9a-f]"


def recipe_lines(recipe: Recipe) -> str:
    """Shape, seed and schedule of a recipe."""
    shape = recipe.shape
    assert isinstance(shape, SmallThinkerShape)
    stages = ", then ".join(f"{s.rows} x {s.length} tokens from step {s.first_step}" for s in recipe.stages)
    return (
        f"- Shape: SmallThinker, {shape.layers} layers, width {shape.width}, {shape.heads} heads of "
        f"{shape.head_width} over {shape.key_value_heads} of keys and values;\n"
        f"  {shape.experts} ReGLU experts of {shape.feed_forward} neurons, {shape.top} a token, chosen "
        f"before attention by sigmoid scores;\n"
        f"  of {FULL_EVERY} blocks the first sees everything without positions, the others a window of "
        f"{shape.window};\n"
        f"  vocabulary {shape.vocabulary} (that of `code`, tied), context {shape.context}.\n"
        f"- Seed {recipe.seed}; {recipe.schedule.steps} steps, load-balance loss times {BALANCE:g};\n"
        f"  {stages}."
    )


def verdict(numbers: dict[str, Any]) -> str:
    """What the mixture is worth beside a dense model of its active size."""
    if "dense_bits_per_byte" not in numbers:
        return "not yet compared with a dense twin"
    gain = 1 - numbers["bits_per_byte"] / numbers["dense_bits_per_byte"]
    aim = f"the aim of {BAR:.0%} is {'met' if gain >= BAR else 'missed'}"
    compared = f"{abs(gain):.1%} {'fewer' if gain >= 0 else 'more'} than its dense twin's"
    return f"{compared} {numbers['dense_bits_per_byte']:.4f}; {aim}"


def per_block(shares: list[float]) -> str:
    """Percentages, one for each block."""
    return ", ".join(f"{share:.0%}" for share in shares)


def twin_line(numbers: dict[str, Any], dense_run: Path | None) -> str:
    """What the dense twin is, and how long it took."""
    twin = "one expert as wide as a token's together"
    kind = str(compute_type(torch.device("cpu"))).removeprefix("torch.")
    if dense_run is None:
        return f"- The twin ({twin}, the same tokens in the same order) is not trained to its end yet."
    return (
        f"- The twin: {twin}, {numbers['dense_parameters']:,} parameters, the same\n"
        f"  tokens in the same order with the same schedule, computed in {kind},\n"
        f"  in {duration(dense_run)}:\n"
        f"  {machine()}. It is not shipped."
    )


def training_line(work: Path) -> str:
    """How long the mixture's training took, and where; as the card has it if ``work`` holds no log of it."""
    runs = list(work.glob(f"code-moe-{HEX}"))
    if not runs:
        kept = (OUT / "CARD.md").read_text(encoding="utf-8")
        return kept[kept.index("- Trained by") : kept.index("- Scored by")].rstrip()
    took = duration(newest(work, f"code-moe-{HEX}"))
    return f"- Trained by `reference/train_code_moe.py` in {took}:\n  {machine()}."


def card(numbers: dict[str, Any], training: str, dense_run: Path | None) -> str:
    """The text of CARD.md."""
    return f"""# code-moe

Completes Python with a mixture of experts. A small base model to try routing, expert stores and sparsity on
without a download; not an assistant.

- Parameters: {numbers["parameters"]:,}, of which a token meets {numbers["active"]:,}.
{recipe_lines(RECIPE)}
{text_lines()}
- **Held-out: {numbers["bits_per_byte"]:.4f} bits a byte** ({numbers["tokens"]:,} tokens; windows of 2,048
  that advance by 1,024), {verdict(numbers)}.
{twin_line(numbers, dense_run)}
- Of 200 held-out `def` bodies completed greedily, {numbers["parse_share"]:.1%} parse.
- Routers over 8,192 held-out tokens, block by block: evenness (entropy over its largest value)
  {per_block(numbers["evenness"])}; the most taken expert has {per_block(numbers["most"])} of the choices, the
  least taken one {per_block(numbers["least"])}.
- Zeros inside the experts taken, block by block: {per_block(numbers["zeros"])}.
{training}
- Scored by `reference/code_moe_evaluate.py`, in the engine, on the f16 weights.

## Limits
It knows one library's manner of 2023, invents names, and loses the thread after some lines. It may repeat
passages of its text. Its numbers hold for code like the standard library's. Experts of so small a model are
no experts of anything one could name.

## Licence
{LICENCE}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("reference-work"), help="folder of the training runs"
    )
    parser.add_argument("--stdlib", type=Path, default=None, help="default: that of the running interpreter")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    set_threads(arguments.threads)
    dense = arguments.work / "code-moe-dense"
    trained = dense.is_dir()
    numbers = evaluate(OUT, dense if trained else None, arguments.stdlib)
    print(json.dumps(numbers, indent=2))
    dense_run = newest(arguments.work, f"code-moe-dense-{HEX}") if trained else None
    text = card(numbers, training_line(arguments.work), dense_run)
    (OUT / "CARD.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
