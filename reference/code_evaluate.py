"""Scores `code` and `code-draft` on the held-out packages: bits a byte, bodies that parse, agreement.

    python reference/code_evaluate.py FOLDER [--draft FOLDER] [--stdlib DIR] [--json FILE]

Bits a byte: the held-out files stand in list order in one stream, an end-of-text token before each and after
the last. Windows of 2,048 tokens advance by 1,024; in every window but the first only the last 1,024 tokens
count, so that each token is predicted once and, after the first window, from at least 1,024 tokens. The cost
of end-of-text tokens counts; the bytes are those of the files. Baseline: `xz -9` of the training text with
the held-out text after it, less `xz -9` of the training text alone.
"""

from __future__ import annotations

import argparse
import ast
import json
import lzma
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as functional
from safetensors.torch import load_file
from tokenizers import Tokenizer

from code_text import read_text
from code_tokenizer import END_OF_TEXT, token_stream
from haversack.models.language.llama_torch import Llama, LlamaShape, rotary_angles, rotate

WINDOW, STRIDE = 2048, 1024
BODIES, PROMPT_TOKENS, BODY_TOKENS = 200, 384, 160
DEF_HEADER = re.compile(r"^([ \t]*)def \w+\([^()\n]*\):\n", re.MULTILINE)


def load_model(folder: Path) -> tuple[Llama, Tokenizer]:
    """A hub-format folder as a float32 model and its tokenizer."""
    shape = LlamaShape.from_hub_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model = Llama(shape)
    model.load_state_dict(
        {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    )
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def windows(length: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first scored) of the windows over a stream: token ``t`` is scored by what precedes it."""
    start, scored = 0, 1
    while scored < length:
        stop = min(start + WINDOW, length - 1)
        yield start, stop, scored
        scored = stop + 1
        start += STRIDE


@torch.inference_mode()
def score(model: Llama, stream: numpy.ndarray, draft: Llama | None = None) -> dict[str, float]:
    """Total bits of the stream under ``model``; with ``draft``, the share of positions where their arg-max
    agrees.
    """
    tokens = torch.from_numpy(stream)
    bits, agreed, counted = 0.0, 0, 0
    for start, stop, scored in windows(len(stream)):
        block = tokens[None, start:stop]
        rows = slice(scored - 1 - start, None)
        logits = model(block)[0, rows].float()
        bits += float(
            functional.cross_entropy(logits, tokens[scored : stop + 1], reduction="sum")
        ) / numpy.log(2)
        counted += len(logits)
        if draft is not None:
            agreed += int((draft(block)[0, rows].argmax(-1) == logits.argmax(-1)).sum())
    result = {"bits": bits, "tokens": counted}
    if draft is not None:
        result["agreement"] = agreed / counted
    return result


def xz_bits_per_byte(training: bytes, held_out: bytes) -> float:
    """What the held-out text adds to `xz -9` of the training text."""
    added = len(lzma.compress(training + held_out, preset=9)) - len(lzma.compress(training, preset=9))
    return 8 * added / len(held_out)


@torch.inference_mode()
def complete(model: Llama, prompts: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy continuation [rows, count] of prompts [rows, length] of equal length, with cached keys and
    values.
    """
    shape = model.shape
    caches: list[tuple[torch.Tensor, torch.Tensor]] = []
    made: list[torch.Tensor] = []
    tokens, begin = prompts, 0
    for _ in range(count):
        x = model.model.embed_tokens(tokens)
        cosine, sine = rotary_angles(
            torch.arange(begin, begin + tokens.shape[1]), shape.head_width, shape.rope_theta
        )
        for index, block in enumerate(model.model.layers):
            normed, attention = block.input_layernorm(x), block.self_attn
            query, key, value = (
                projection(normed).unflatten(-1, (-1, shape.head_width)).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
            if begin:
                key, value = (
                    torch.cat(pair, dim=2) for pair in zip(caches[index], (key, value), strict=True)
                )
                caches[index] = (key, value)
            else:
                caches.append((key, value))
            group = shape.heads // shape.key_value_heads
            mixed = functional.scaled_dot_product_attention(
                query,
                key.repeat_interleave(group, 1),
                value.repeat_interleave(group, 1),
                is_causal=begin == 0,
            )
            x = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.post_attention_layernorm(x))
        begin += tokens.shape[1]
        last = functional.linear(model.model.norm(x[:, -1]), model.model.embed_tokens.weight)
        tokens = last.argmax(-1, keepdim=True)
        made.append(tokens)
    return torch.cat(made, dim=1)


def body_of(completion: str, indent: int, cut: bool) -> str:
    """The lines of ``completion`` that belong to a def indented by ``indent``; a last line that was cut is
    dropped.
    """
    lines = completion.split("\n")
    for number, line in enumerate(lines):
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            return "\n".join(lines[:number])
    return "\n".join(lines[:-1] if cut else lines)


def parses(source: str) -> bool:
    """Whether Python's own parser accepts ``source``."""
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


Completer = Callable[[list[list[int]]], list[list[int]]]
"""Greedy continuations of BODY_TOKENS tokens of prompts of equal length; they may stop at an end."""


def parse_share(completer: Completer, tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]) -> float:
    """Share of greedily completed bodies, of defs spread evenly over the held-out files, that parse.

    The prompt is the file up to the def's header line, its last 384 tokens; a body ends where the indentation
    does, or at its last whole line within 160 tokens.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    places = []
    for _, text in texts:
        for match in DEF_HEADER.finditer(text):
            tokens = [end, *tokenizer.encode(text[: match.end() - 1]).ids]
            if len(tokens) >= PROMPT_TOKENS:
                places.append((match, tokens[-PROMPT_TOKENS:]))
    chosen = [places[i * len(places) // BODIES] for i in range(BODIES)]
    good = 0
    for first in range(0, BODIES, 50):
        part = chosen[first : first + 50]
        made = completer([tokens for _, tokens in part])
        for (match, _), row in zip(part, made, strict=True):
            cut = end not in row
            completion = tokenizer.decode(row if cut else row[: row.index(end)])
            header = match.group(0).rstrip("\n")
            indent = len(match.group(1))
            good += parses(textwrap.dedent(header + body_of(completion, indent, cut) + "\n"))
    return good / BODIES


def evaluate(folder: Path, draft_folder: Path | None, stdlib: Path | None) -> dict[str, Any]:
    """All numbers of the cards."""
    texts = read_text(stdlib)
    training, held_out = ("".join(text for _, text in texts[part]).encode() for part in ("train", "held-out"))
    model, tokenizer = load_model(folder)
    draft = load_model(draft_folder)[0] if draft_folder else None
    stream = token_stream(tokenizer, texts["held-out"])
    result: dict[str, Any] = dict(score(model, stream, draft))
    if draft is not None:
        result["draft_parameters"] = sum(value.numel() for value in draft.parameters())
        result["draft_bits_per_byte"] = score(draft, stream)["bits"] / len(held_out)
    result["held_out_bytes"] = len(held_out)
    result["bits_per_byte"] = result["bits"] / len(held_out)
    result["xz_bits_per_byte"] = xz_bits_per_byte(training, held_out)
    result["parse_share"] = parse_share(
        lambda prompts: complete(model, torch.tensor(prompts), BODY_TOKENS).tolist(),
        tokenizer,
        texts["held-out"],
    )
    result["parameters"] = sum(value.numel() for value in model.parameters())
    result["embedding_parameters"] = model.model.embed_tokens.weight.numel()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draft", type=Path, default=None)
    parser.add_argument("--stdlib", type=Path, default=None, help="default: that of the running interpreter")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = evaluate(arguments.folder, arguments.draft, arguments.stdlib)
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
