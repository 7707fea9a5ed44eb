"""What compression costs `code`: GPTQ beside round-to-nearest, 8 bits, int8 activations; and what the
reference models are worth.

Losses are bits per byte of held-out packages of the standard library (more than 100 thousand tokens),
computed by our engine in windows of 1,024 tokens. GPTQ is calibrated three times, on 64 k tokens drawn by
three seeds; round-to-nearest chooses its scales by the same search.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.engine._bench import SHRINK_FILES, bench
from haversack.bench.engine._models import code_folder, code_pack

if TYPE_CHECKING:
    from haversack.models._calibration import TokenText
    from haversack.run._engine import Engine

GPTQ = "gptq:bits=4,group=64,scales=searched"
NEAREST = "round-to-nearest:bits=4,group=64,scales=searched"
EIGHT = "round-to-nearest:bits=8"
FEWEST_TOKENS, MOST_TOKENS = 100_000, 101_000
QUICK_TOKENS, DRAFT_TOKENS = 6_000, 40_000
WINDOW, STRIDE = 1024, 896
SEEDS = (0, 1, 2)
XZ_BITS_PER_BYTE = 1.46


def evaluation_text(run: Run, most: int = MOST_TOKENS) -> TokenText:
    """Held-out tokens: more than 100 thousand, or in a quick run a piece at a fresh place."""
    import numpy as np

    from haversack.formats.safetensors import HubFolder
    from haversack.models import Tokenizer, read_architecture
    from haversack.models._calibration import TokenText, token_text

    source = HubFolder.open(code_folder())
    encode = Tokenizer.of_folder(source.path).encode
    vocabulary = read_architecture(source.config).vocabulary
    text = token_text(encode, vocabulary, "evaluation", None, FEWEST_TOKENS)
    if not run.quick:
        return text.part(most)
    start = int(np.random.default_rng(run.seed).integers(0, len(text.tokens) - QUICK_TOKENS))
    tokens = text.tokens[start : start + QUICK_TOKENS]
    return TokenText(text.source, tokens, round(text.byte_count * QUICK_TOKENS / len(text.tokens)))


def engine(model: Path, activations: str = "f32") -> Engine:
    """The pack or checkpoint at `model`, ready to run."""
    from haversack.run._engine import Engine

    return Engine.open(model, activations=activations)


def loss(model: Path, text: TokenText, activations: str = "f32") -> float:
    """Bits per byte of `text` by the pack or checkpoint at `model`."""
    from haversack.models._evaluation import bits_per_byte

    return bits_per_byte(engine(model, activations), text.tokens, text.byte_count, WINDOW, STRIDE)


@bench.measure(
    Row(
        "gptq-loss",
        "at 4 bits in groups of 64, GPTQ's loss increase on `code` is at most 70 % of round-to-nearest's",
        "bits/byte more than f32",
        "quality",
        Bar("<=", 0.7),
        published="perplexity close to 16 bits at 4 bits (Frantar et al., 2023)",
    ),
    Row(
        "int8-loss",
        "8 bits a weight cost `code` at most 0.5 % of its loss",
        "bits/byte",
        "quality",
        Bar("<=", 1.005),
    ),
    Row(
        "code-bits",
        "`code` predicts packages it never saw (baseline: xz -9 given the training text)",
        "bits/byte",
        "quality",
        Bar("<=", 1.30),
        judged="ours",
    ),
    seconds=400,
    watches=SHRINK_FILES,
)
def compression(run: Run) -> Outcomes:
    text = evaluation_text(run)
    run.say("loss of `code` in f32")
    plain = loss(code_folder(), text)
    run.say("loss of 8 bits and of round-to-nearest")
    eight = loss(code_pack(EIGHT), text)
    nearest = loss(code_pack(NEAREST), text) - plain
    ours = []
    for seed in SEEDS:
        run.say(f"loss of GPTQ, calibration seed {seed}")
        ours.append(loss(code_pack(GPTQ, seed=seed), text) - plain)
    note = f"{len(text.tokens)} held-out tokens; f32 loss {plain:.4f}; scales searched in both"
    return {
        "gptq-loss": Outcome(
            Side("GPTQ, three seeds", tuple(ours)), Side("round-to-nearest", (nearest,) * len(ours)), note
        ),
        "int8-loss": Outcome.single(eight, plain, name="int8", against="f32", note=note),
        "code-bits": Outcome.single(plain, XZ_BITS_PER_BYTE, name="code in f32", against="xz -9", note=note),
    }


@bench.measure(
    Row(
        "dynamic-loss",
        "int8 activations cost `code` (4-bit weights) at most 0.5 % of its loss",
        "bits/byte",
        "quality",
        Bar("<=", 1.005),
        quick=True,
    ),
    Row(
        "dynamic-agreement",
        "with int8 activations the most likely token stays the same",
        "share",
        "quality",
        Bar(">=", 0.99),
        judged="ours",
        quick=True,
    ),
    seconds=200,
    quick_seconds=12,
    watches=SHRINK_FILES,
)
def dynamic_activations(run: Run) -> Outcomes:
    text = evaluation_text(run)
    pack = code_pack(NEAREST)
    plain, dynamic, same = compared(engine(pack), engine(pack, "int8-dynamic"), text)
    note = f"{len(text.tokens)} held-out tokens, {NEAREST}"
    return {
        "dynamic-loss": Outcome.single(
            dynamic, plain, name="int8-dynamic", against="f32 activations", note=note
        ),
        "dynamic-agreement": Outcome.single(same, name="int8-dynamic", note=note),
    }


def compared(first: Engine, second: Engine, text: TokenText) -> tuple[float, float, float]:
    """Bits per byte of both engines and how often their largest logits name the same token, in one pass."""
    from haversack.models._evaluation import next_token_logits, token_bits

    bits = [0.0, 0.0]
    same = seen = 0
    passes = [next_token_logits(one, text.tokens, WINDOW, STRIDE) for one in (first, second)]
    for (ours, targets), (theirs, _) in zip(*passes, strict=True):
        same += int((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).sum())
        seen += len(targets)
        bits[0] += float(token_bits(ours, targets).sum())
        bits[1] += float(token_bits(theirs, targets).sum())
    return bits[0] / text.byte_count, bits[1] / text.byte_count, same / max(seen, 1)


@bench.measure(
    Row(
        "draft-agreement",
        "`code-draft` gives its largest logit to the same token as `code`",
        "share",
        "quality",
        Bar(">=", 0.45),
        judged="ours",
    ),
    seconds=90,
    watches=(*SHRINK_FILES, "reference_models/code-draft/*"),
)
def draft(run: Run) -> Outcomes:
    from haversack.models._evaluation import agreement

    text = evaluation_text(run)
    same = agreement(engine(code_folder()), engine(code_folder("code-draft")), text.tokens, WINDOW, STRIDE)
    note = f"{len(text.tokens)} held-out tokens"
    return {"draft-agreement": Outcome.single(same, name="code-draft", note=note)}
