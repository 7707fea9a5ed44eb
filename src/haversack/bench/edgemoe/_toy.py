"""The model of this bench: six layers of eight experts, one of which takes each byte of text.

An OLMoE of width 192, trained by the reference implementation on Tiny Shakespeare with a load-balancing loss,
about 450 steps of 2,048 bytes. The last tenth of the text is held out: its first half is what calibration
sees, its second half is what everything is measured on.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._cache import cache_folder, cached, content_key
from haversack.bench._harness import Run
from haversack.bench._rows import Unavailable
from haversack.bench._store import content_hash
from haversack.core._datasets import local_path
from haversack.core.errors import MissingExtraError

I32 = NDArray[np.int32]
LAYERS, EXPERTS, WIDTH, INNER = 6, 8, 192, 384
LENGTH, BATCH, STEPS, SEED = 128, 16, 450, 7
CONFIG: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 1,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.01,
    "output_router_logits": True,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
NAME = "edgemoe-toy"
INPUTS = {"config": CONFIG, "steps": STEPS, "batch": [BATCH, LENGTH], "seed": SEED}
PIECE = 512
CALIBRATION_PIECES = 8


def text() -> bytes:
    """Tiny Shakespeare. Raises Unavailable where it is not at hand."""
    path = local_path("tiny-shakespeare")
    if path is None:
        raise Unavailable("the data set tiny-shakespeare is not at hand; docs/data.md says where it may lie")
    return path.read_bytes()


def parts() -> tuple[I32, I32, I32]:
    """Tokens to train on, to calibrate with, to measure on."""
    tokens = np.frombuffer(text(), np.uint8).astype(np.int32)
    held_out = len(tokens) // 10
    middle = len(tokens) - held_out // 2
    return tokens[: len(tokens) - held_out], tokens[len(tokens) - held_out : middle], tokens[middle:]


def trained(run: Run) -> None:
    """Raises Unavailable in a quick run that would have to train the model or choose its bits."""
    made = cache_folder() / "bench" / f"{NAME}-{content_key(INPUTS)}"
    if run.quick and not made.is_dir():
        raise Unavailable("the model of this bench is not trained yet; a full run does that")


@cache
def folder() -> Path:
    """The trained model as a folder of the hub's own format, made once."""
    try:
        return cached(NAME, INPUTS, lambda goal: train(goal, CONFIG)) / "toy"
    except MissingExtraError as error:
        raise Unavailable(str(error)) from error


def train(goal: Path, config: dict[str, Any]) -> None:
    """The folder `toy` under `goal`: a model of `config`, trained."""
    try:
        import torch
        from transformers import OlmoeConfig, OlmoeForCausalLM
    except ImportError as error:
        raise MissingExtraError("the model of this bench", "torch and transformers", "workshop") from error
    train, _, _ = parts()
    torch.manual_seed(SEED)
    model = OlmoeForCausalLM(OlmoeConfig(**config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.1)
    rng = np.random.default_rng(SEED)
    for _ in range(STEPS):
        starts = rng.integers(0, len(train) - LENGTH - 1, BATCH)
        batch = torch.from_numpy(np.stack([train[at : at + LENGTH] for at in starts]).astype(np.int64))
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(goal / "toy", safe_serialization=True)
    told = json.loads((goal / "toy" / "config.json").read_text())
    (goal / "toy" / "config.json").write_text(json.dumps({**told, "model_type": "olmoe"}))


def pack(precision: str) -> Path:
    """The toy packed with `precision`, calibrated on the calibration part, kept by content."""
    from haversack.bench.edgemoe._bench import FILES

    source = folder()
    inputs = {
        "precision": precision,
        "pieces": [CALIBRATION_PIECES, PIECE],
        "program": content_hash(FILES[1:]),
        "model": source.parent.name,
    }
    return cached("edgemoe-pack", inputs, lambda goal: write_pack(source, goal, precision)) / "toy.pack"


def write_pack(source_folder: Path, goal: Path, precision: str) -> None:
    """The folder `toy.pack` under `goal`: a model, calibrated on the calibration part."""
    from haversack.core import index
    from haversack.core.pack import PackWriter
    from haversack.formats.safetensors import HubFolder
    from haversack.models import read_architecture
    from haversack.models._checkpoint import checkpoint
    from haversack.shrink._language import LanguageWalk
    from haversack.shrink._pipeline import Policy, compress

    source: Any = HubFolder.open(source_folder)
    architecture = read_architecture(source.config)
    config = source.config
    source = checkpoint(source, architecture)
    method: Any = index.create("shrink", "precision", precision)
    with PackWriter(goal / "toy.pack") as writer:
        policy = Policy(output="as-blocks", embedding="f32")
        walk = LanguageWalk(architecture)
        compress(source, walk, method, writer, texts=calibration(), policy=policy, folder=goal)
        writer.finish({"architecture": config, "plan": {"precision": precision}})


def calibration() -> I32:
    """What calibration sees: i32 [pieces, length]."""
    _, seen, _ = parts()
    return seen[: CALIBRATION_PIECES * PIECE].reshape(CALIBRATION_PIECES, PIECE)


def prompts(count: int, length: int, seed: int) -> list[I32]:
    """`count` beginnings of `length` bytes from the part that is measured on."""
    _, _, later = parts()
    starts = np.random.default_rng(seed).integers(0, len(later) - length, count)
    return [later[at : at + length] for at in starts]
