"""Measures `code` and `code-draft` and writes their cards (CARD.md).

    python reference/code_card.py --work DIR [--stdlib DIR]

Every number is measured by this command or read from the log of the training run in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import train_code
import train_draft
from code_evaluate import BODIES, evaluate
from code_recipe import Recipe
from code_text import RELEASE, listed_files

MODELS = train_draft.MODELS

LICENCE = f"""Weights: Apache-2.0. The text they were trained on is the standard library of CPython {RELEASE}
(Copyright 2001-2023 Python Software Foundation; All Rights Reserved), under the PSF License Version 2, which
allows derived works; the NOTICE beside this folder names it."""


def machine() -> str:
    """Processor, cores and versions, in words."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [
            line
            for line in information.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        model = names[0].split(":", 1)[1].strip() if names else model
    capability = torch.backends.cpu.get_cpu_capability()
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{model} ({capability}), {cores}, PyTorch {torch.__version__}"


def duration(folder: Path) -> str:
    """Minutes of a training run from the last line of its log."""
    last = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    busy = last["cpu_minutes"] / torch.get_num_threads()
    clock = f"{last['minutes']:.0f} by the clock (shared machine)"
    return f"about {busy:.0f} minutes of computing on each core, {clock}"


def recipe_lines(recipe: Recipe) -> str:
    """Shape, seed and schedule of a recipe."""
    shape = recipe.shape
    stages = ", then ".join(f"{s.rows} x {s.length} tokens from step {s.first_step}" for s in recipe.stages)
    return (
        f"- Shape: Llama, {shape.layers} layers, width {shape.width}, {shape.heads} heads over "
        f"{shape.key_value_heads} of keys and values,\n  feed-forward {shape.feed_forward}, vocabulary "
        f"{shape.vocabulary} (byte-level BPE, tied), context {shape.context}.\n"
        f"- Seed {recipe.seed}; {recipe.schedule.steps} steps;\n  {stages}."
    )


def text_lines() -> str:
    """What was trained on and what was held out."""
    files = listed_files()
    sizes = {
        part: (sum(f.part == part for f in files), sum(f.size for f in files if f.part == part) / 1e6)
        for part in ("train", "held-out")
    }
    (trained, megabytes), (held_out, held_out_megabytes) = sizes["train"], sizes["held-out"]
    return (
        f"- Text: {trained} files, {megabytes:.1f} MB, of the standard library of CPython {RELEASE},\n"
        f"  listed with hashes in `reference/code_text.tsv`. Held out: {held_out} files,\n"
        f"  {held_out_megabytes:.2f} MB, whole packages and the tests of three of them; tests of held-out\n"
        f"  packages are never trained on."
    )


def code_card(numbers: dict[str, Any], run: Path) -> str:
    share = numbers["embedding_parameters"] / numbers["parameters"]
    return f"""# code

Completes Python. A small base model to try every part of Haversack on without a download; not an assistant.

- Parameters: {numbers["parameters"]:,}, of which {share:.1%} in the embedding.
{recipe_lines(train_code.RECIPES["small"])}
{text_lines()}
- **Held-out: {numbers["bits_per_byte"]:.4f} bits a byte** ({numbers["tokens"]:,} tokens; windows of 2,048
  that advance by 1,024). `xz -9` given the training text: {numbers["xz_bits_per_byte"]:.4f}.
- Of {BODIES} held-out `def` bodies completed greedily, {numbers["parse_share"]:.1%} parse.
- Trained by `reference/train_code.py` in {duration(run)}:
  {machine()}.
- Scored by `reference/code_evaluate.py` on the f16 weights.

## Limits
It knows one library's manner of 2023, invents names, and loses the thread after some lines. It may repeat
passages of its text. Its numbers hold for code like the standard library's.

## Licence
{LICENCE}
"""


def draft_card(numbers: dict[str, Any], run: Path) -> str:
    return f"""# code-draft

Guesses what `code` will say, for speculative decoding. Same tokenizer.

- Parameters: {numbers["draft_parameters"]:,}.
{recipe_lines(train_draft.RECIPE)}
{text_lines()}
- **Its arg-max agrees with that of `code` on {numbers["agreement"]:.1%}** of the held-out positions
  ({numbers["tokens"]:,}; windows of 2,048 that advance by 1,024).
- Held-out by itself: {numbers["draft_bits_per_byte"]:.4f} bits a byte
  (`code`: {numbers["bits_per_byte"]:.4f}).
- Distilled by `reference/train_draft.py` in {duration(run)}:
  {machine()}.
- Scored by `reference/code_evaluate.py` on the f16 weights.

## Licence
{LICENCE}
"""


def newest(work: Path, pattern: str) -> Path:
    """The run folder that matches and was written last."""
    return max(work.glob(pattern), key=lambda folder: (folder / "log.jsonl").stat().st_mtime)


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
    numbers = evaluate(MODELS / "code", MODELS / "code-draft", arguments.stdlib)
    print(json.dumps(numbers, indent=2))
    code_run = newest(arguments.work, "code-" + 16 * "[0-9a-f]")
    draft_run = newest(arguments.work, "code-draft-*")
    (MODELS / "code" / "CARD.md").write_text(code_card(numbers, code_run), encoding="utf-8")
    (MODELS / "code-draft" / "CARD.md").write_text(draft_card(numbers, draft_run), encoding="utf-8")


if __name__ == "__main__":
    main()
