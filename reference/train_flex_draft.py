"""Trains `code-flex-draft`: FlexSpec's draft of `code`, of which only the bridge is stored.

    OMP_WAIT_POLICY=passive python reference/train_flex_draft.py --work DIR [--stdlib DIR]

The draft is `code`'s embedding, first block, last norm and output matrix, and one block more that learns to
say what `code` says (src/haversack/train/draft.py); it serves `haversack run code --draft code-flex-draft`
and every version of `code` that keeps the anchor. `bridge.safetensors` holds the block alone, about 3 MB; the
rest is read out of `code`. About twenty minutes on two quiet cores with bfloat16.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from code_card import LICENCE, machine
from code_evaluate import score
from code_text import RELEASE, listed_files, read_text
from code_tokenizer import token_stream
from haversack.core.progress import progress
from haversack.models._borrowed import BRIDGE_FILE, FIELD, INDEX_FILE
from haversack.models.language.llama_torch import Llama, LlamaShape
from haversack.train._texts import Texts
from haversack.train._training import Learning
from haversack.train.draft import Bridge, train_draft

MODELS = Path(__file__).resolve().parents[1] / "src" / "haversack" / "reference_models"
NAME, TARGET = "code-flex-draft", "code"
BRIDGE = Bridge(anchor_layers=1, temperature=0.7)
LEARNING = Learning(steps=900, rows=16, length=256, matrix_rate=0.02, rate=0.003, compute="bf16", seed=7)
COPIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def without_anchor(whole: Path, out: Path, target: str) -> None:
    """Write the draft `whole` at `out` without the tensors that `target`, a bundled model, has too."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = load_file(whole / "model.safetensors")
    shared = load_file(MODELS / target / "model.safetensors")
    layers = json.loads((whole / "family.json").read_text(encoding="utf-8"))["anchor_layers"]
    bridge = {name: value for name, value in tensors.items() if name.startswith(f"model.layers.{layers}.")}
    for name in tensors.keys() - bridge.keys():
        if tensors[name].tobytes() != shared[name].tobytes():
            raise ValueError(f"{name} of the draft is not {target}'s")
    partial = out / f"{BRIDGE_FILE}.partial"
    save_file(bridge, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(out / BRIDGE_FILE)
    index = {
        "metadata": {"total_size": sum(value.nbytes for value in bridge.values())},
        "weight_map": dict.fromkeys(bridge, BRIDGE_FILE),
    }
    write_json(out / INDEX_FILE, index)
    family = json.loads((whole / "family.json").read_text(encoding="utf-8"))
    write_json(out / "family.json", {**family, FIELD: target})
    for name in COPIED:
        shutil.copyfile(whole / name, out / name)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, with a last line break."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def loaded(folder: Path) -> Llama:
    """A whole hub folder as a float32 model."""
    shape = LlamaShape.from_hub_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model = Llama(shape)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: torch.from_numpy(value.astype("f4")) for name, value in weights.items()})
    return model.eval()


def card(numbers: dict[str, Any], minutes: float, out: Path) -> str:
    files = {file.part: 0 for file in listed_files()}
    sizes = dict(files)
    for file in listed_files():
        files[file.part] += 1
        sizes[file.part] += file.size
    megabytes = sum((out / name).stat().st_size for name in (BRIDGE_FILE, "tokenizer.json")) / 1e6
    return f"""# code-flex-draft

Guesses what `code` will say, and what every later version of it will that keeps the same anchor (FlexSpec).
Same tokenizer.

- `code`'s embedding, first block, last norm and output matrix, which are read out of `code`, and one block of
  its own: {numbers["bridge_parameters"]:,} parameters, {megabytes:.1f} MB with the tokenizer.
- {LEARNING.steps} steps of {LEARNING.rows} x {LEARNING.length} tokens, seed {LEARNING.seed}; in half of the
  steps `code` is changed at random by {BRIDGE.evolution:.0%} of its weights' norm.
- Text: {files["train"]} files, {sizes["train"] / 1e6:.1f} MB, of the standard library of CPython {RELEASE},
  listed with hashes in `reference/code_text.tsv`. Held out: {files["held-out"]} files, whole packages.
- **Its arg-max agrees with that of `code` on {numbers["agreement"]:.1%}** of the held-out positions
  ({numbers["tokens"]:,}; windows of 2,048 that advance by 1,024).
- Trained by `reference/train_flex_draft.py` in {minutes:.0f} minutes by the clock: {machine()}.
- Scored by `reference/code_evaluate.py` on the f16 weights.

## Licence
{LICENCE}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("reference-work"), help="folder of the intermediates"
    )
    parser.add_argument("--stdlib", type=Path, default=None, help="default: that of the running interpreter")
    parser.add_argument("--out", type=Path, default=MODELS / NAME)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    arguments.work.mkdir(parents=True, exist_ok=True)
    whole = arguments.work / NAME
    texts = read_text(arguments.stdlib)
    tokenizer = Tokenizer.from_file(str(MODELS / TARGET / "tokenizer.json"))
    learned, held_out = (token_stream(tokenizer, texts[part]) for part in ("train", "held-out"))
    lesson = Texts(learned.astype(numpy.int32), held_out.astype(numpy.int32))
    learning = Learning(**{**LEARNING.__dict__, "threads": arguments.threads})
    with progress(NAME, total=learning.steps) as bar:
        done = train_draft(TARGET, lesson, whole, bridge=BRIDGE, learning=learning, name=TARGET, bar=bar)
    assert done is not None
    without_anchor(whole, arguments.out, TARGET)
    numbers: dict[str, Any] = dict(score(loaded(MODELS / TARGET), held_out, loaded(whole)))
    bridge = load_file(arguments.out / BRIDGE_FILE)
    numbers["bridge_parameters"] = sum(value.size for value in bridge.values())
    print(json.dumps(numbers | done.record(), indent=2))
    text = card(numbers, done.report.seconds / 60, arguments.out)
    (arguments.out / "CARD.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
