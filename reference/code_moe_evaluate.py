"""Scores `code-moe` and its dense twin in the torch-free engine: bits a byte, bodies that parse, what the
routers and the neurons do.

    python reference/code_moe_evaluate.py FOLDER [--dense FOLDER] [--stdlib DIR] [--json FILE]

Bits a byte and bodies are defined as in `code_evaluate`, here of the engine in f32. Routers and neurons are
looked at over the first windows of the held-out text: how evenly experts are taken (entropy over its largest
value; the shares of the most and of the least taken one), and how many inner numbers of the experts taken
are zero.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from code_evaluate import BODY_TOKENS, STRIDE, WINDOW, parse_share
from code_text import read_text
from code_tokenizer import END_OF_TEXT, token_stream
from haversack.kernels import CacheLayer, set_threads
from haversack.models._architecture import Mixture
from haversack.models._evaluation import CHUNK, bits_per_byte
from haversack.run import Engine
from haversack.run._routing import RoutingTrace

WATCHED_WINDOWS = 4


def completed(engine: Engine, end: int, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy continuations of `prompts`, each of BODY_TOKENS tokens or ended by `end`."""
    rows = []
    for prompt in prompts:
        cache = engine.cache(len(prompt) + BODY_TOKENS)
        row: list[int] = []
        tokens = prompt
        while len(row) < BODY_TOKENS and row[-1:] != [end]:
            logits, _ = engine.step(tokens, cache=cache)
            assert logits is not None
            tokens = [int(logits[-1].argmax())]
            row += tokens
        rows.append(row)
    return rows


def sizes(engine: Engine) -> dict[str, int]:
    """`parameters`, and those that a token meets, `active`."""
    total = sum(math.prod(shape) for shape in engine.architecture.checkpoint_tensors().values())
    idle = 0
    for mixture in mixtures(engine):
        expert = mixture.experts[0]
        each = sum(one.outputs * one.inputs for one in (*expert.products()[0], expert.down))
        idle += (len(mixture.experts) - mixture.top) * each
    return {"parameters": total, "active": total - idle}


def mixtures(engine: Engine) -> list[Mixture]:
    """The mixtures of all blocks."""
    found = [block.mixture for block in engine.architecture.blocks]
    return [mixture for mixture in found if mixture is not None]


def evenness(counts: np.ndarray) -> float:
    """Entropy of the shares of `counts` over that of equal shares; 1: all experts are taken as often."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(len(counts)))


def watched(engine: Engine, tokens: np.ndarray) -> dict[str, list[float]]:
    """Of each block, over `tokens` i32 [windows, n]: `evenness`, `most`, `least` of its experts' shares of
    the choices, and `zeros`, the share of zeros among the inner numbers of the experts taken.
    """
    trace = RoutingTrace()
    engine.observe(trace)
    zeros = np.zeros((len(engine.architecture.blocks), 2))
    for window in tokens:
        states = engine._embed(window, np.arange(len(window), dtype=np.int32))
        for block in engine.architecture.blocks:

            def tap(name: str, x: np.ndarray, counted: np.ndarray = zeros[block.index]) -> None:
                if name.endswith(".down.weight"):
                    counted += (x.size - np.count_nonzero(x), x.size)

            assert block.attention is not None
            layer = CacheLayer.empty(
                block.attention.key_value_heads, len(window), block.attention.head_width, "f32"
            )
            with engine.held.weights(block.index) as weights:
                for start in range(0, len(window), CHUNK):
                    rows = slice(start, min(start + CHUNK, len(window)))
                    positions = np.arange(rows.start, rows.stop, dtype=np.int32)
                    states[rows] = engine.forward.block_forward(
                        block.index, states[rows], positions, layer, weights, tap, start=start
                    )
    engine.observe(None)
    counts = [
        trace.counts(block, len(mixture.experts))
        for block, mixture in zip(trace.blocks, mixtures(engine), strict=True)
    ]
    return {
        "evenness": [evenness(each) for each in counts],
        "most": [float(each.max() / each.sum()) for each in counts],
        "least": [float(each.min() / each.sum()) for each in counts],
        "zeros": (zeros[:, 0] / zeros[:, 1]).tolist(),
    }


def evaluate(folder: Path, dense_folder: Path | None, stdlib: Path | None) -> dict[str, Any]:
    """All numbers of the card."""
    held_out = read_text(stdlib)["held-out"]
    byte_count = sum(len(text.encode()) for _, text in held_out)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stream = token_stream(tokenizer, held_out).astype(np.int32)
    result: dict[str, Any] = {"tokens": len(stream) - 1, "held_out_bytes": byte_count}
    with Engine.open(folder) as engine:
        result |= sizes(engine)
        result["bits_per_byte"] = bits_per_byte(engine, stream, byte_count, WINDOW, STRIDE)
        watch = stream[: WATCHED_WINDOWS * WINDOW].reshape(WATCHED_WINDOWS, WINDOW)
        result |= watched(engine, watch)
        completer = partial(completed, engine, tokenizer.token_to_id(END_OF_TEXT))
        result["parse_share"] = parse_share(completer, tokenizer, held_out)
    if dense_folder is not None:
        with Engine.open(dense_folder) as engine:
            result |= {f"dense_{name}": value for name, value in sizes(engine).items()}
            result["dense_bits_per_byte"] = bits_per_byte(engine, stream, byte_count, WINDOW, STRIDE)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dense", type=Path, default=None, help="the twin, of train_code_moe.py --dense")
    parser.add_argument("--stdlib", type=Path, default=None, help="default: that of the running interpreter")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers to this file")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    result = evaluate(arguments.folder, arguments.dense, arguments.stdlib)
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
