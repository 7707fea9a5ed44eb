"""The recall model: a decoder of 4 layers, 128 wide, that finds a record by its key; trained in minutes.

It is a SmolLM3: layers with rotary positions and layers without take turns, so that what it looks up does not
depend on how far away it is. Training begins near a circuit that small models find by themselves after hours:
keys and words in directions of their own, a head of the first layer that leans to the token before, a second
layer that compares a key with what the first says came before and else looks at the document's beginning.
These stay; the rest learns to read out what they find. Short documents first, long ones last.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from haversack.bench.dhsa._records import FIRST_KEY, FIRST_WORD, KEYS, START, VOCABULARY, document
from haversack.formats.safetensors import write_safetensors
from haversack.models import read_architecture
from haversack.models._blocks_torch import embed, norm_forward, through_blocks

WIDTH, LAYERS, HEADS, HEAD, THETA = 128, 4, 2, 64, 100.0
OF_KEYS, OF_WORDS = 48, 31
"""Directions that keys and words begin in; one more is the document's beginning, the other 48 tell which key
came before."""
CONFIG: dict[str, Any] = {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rope_theta": THETA,
    "rms_norm_eps": 1e-5,
    "no_rope_layers": [1, 0, 1, 0],
    "attention_bias": True,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}
# steps, documents, their tokens, longest record, words asked for, words between questions, share of questions
STAGES = (
    (40, 32, 64, 8, 1, 2, 0.5),
    (20, 8, 256, 20, 1, 4, 0.5),
    (20, 2, 1024, 60, 1, 16, 0.25),
    (8, 1, 4096, 60, 1, 16, 0.25),
    (2, 1, 8192, 60, 1, 16, 0.25),
)
STEPS = sum(stage[0] for stage in STAGES)
RATE = 1e-3
SINK = 8.0
"""How strongly queries that look nothing up lean to the document's beginning."""
PEAK, PAIRS = 24.0, 8
"""How strongly the first layer leans to a place before training, by so many of the fastest rotations."""


def is_kept(name: str) -> bool:
    """True for what the look-up compares, which stays as it begins: the rest learns to read it out."""
    compared = ("layers.1.self_attn.q_proj", "layers.1.self_attn.k_proj", "layers.1.input_layernorm")
    return "embed" in name or ".layers.0." in name or any(one in name for one in compared)


def initial(seed: int) -> dict[str, Tensor]:
    """The weights before training."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    keys, words, sink, before = basis.split((OF_KEYS, OF_WORDS, 1, OF_KEYS), dim=1)
    speeds = THETA ** (-torch.arange(PAIRS) * 2.0 / HEAD)
    strength = (PEAK * HEAD**0.5 / PAIRS) ** 0.5
    found: dict[str, Tensor] = {}
    for name, shape in read_architecture(CONFIG).tensors().items():
        turned = ".layers.0." in name or ".layers.2." in name
        first, second = ".layers.0.self_attn." in name, ".layers.1.self_attn." in name
        part = name.split(".")[-2]
        if len(shape) == 1:
            tensor = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
            if turned and name.endswith("k_proj.bias"):
                tensor[:PAIRS] = strength
            if turned and name.endswith("q_proj.bias"):
                for head, row in enumerate(tensor.view(HEADS, HEAD)):
                    row[:PAIRS] = strength * torch.cos((head + 1) * speeds)
                    row[HEAD // 2 : HEAD // 2 + PAIRS] = -strength * torch.sin((head + 1) * speeds)
            if second and name.endswith("q_proj.bias"):
                tensor.view(HEADS, HEAD)[:, OF_KEYS] = SINK
        elif "embed" in name:
            tensor = drawn(VOCABULARY, OF_WORDS) @ words.T
            tensor[FIRST_KEY:FIRST_WORD] = drawn(KEYS, OF_KEYS) @ keys.T
            tensor[START] = sink[:, 0]
        else:
            tensor = 0.3 * drawn(*shape)
            if part == "v_proj" and first:
                tensor[:OF_KEYS] = keys.T
            if part == "v_proj" and second:
                tensor[:OF_WORDS] = words.T
            if part == "k_proj" and second:
                tensor[:] = 0
                tensor[:OF_KEYS] = before.T
                tensor[OF_KEYS] = sink[:, 0]
            if part == "q_proj" and second:
                tensor[:] = 0
                tensor.view(HEADS, HEAD, WIDTH)[:, :OF_KEYS] = 1.8 * keys.T
            if part in ("o_proj", "down_proj"):
                tensor *= 0.05
            if part == "o_proj" and first:
                tensor[:] = 0
                tensor[:, :OF_KEYS] = 0.08 * before
            if part == "o_proj" and second:
                tensor.view(WIDTH, HEADS, HEAD)[:, :, :OF_WORDS] = 0.06 * words[:, None]
        found[name] = tensor.clone().contiguous().requires_grad_(not is_kept(name))
    return found


def answer_loss(weights: dict[str, Tensor], tokens: Tensor, answers: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of the words that questions ask for, and the share of them that come first."""
    architecture = read_architecture(CONFIG)
    hidden = through_blocks(architecture, embed(architecture, tokens[:, :-1], weights), weights)
    assert architecture.final_norm is not None
    wanted = answers[:, 1:]
    normal = norm_forward(architecture.final_norm, hidden[wanted], weights)
    logits = functional.linear(normal, weights[architecture.embedding])
    targets = tokens[:, 1:][wanted].long()
    right = float((logits.argmax(-1) == targets).float().mean())
    return functional.cross_entropy(logits, targets), right


def rate_of(step: int) -> float:
    """Rises over 10 steps, falls over the last half to a tenth."""
    return RATE * min(1.0, (step + 1) / 10) * min(1.0, 0.1 + 1.8 * (STEPS - step) / STEPS)


def train(folder: Path, seed: int = 0, seconds: float | None = None, say: Any = print) -> bool:
    """Train to the end, or for `seconds`, going on from folder/state.pt; True when the model is written."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = initial(seed)
    learned = [tensor for tensor in weights.values() if tensor.requires_grad]
    adam = torch.optim.Adam(learned, lr=RATE, betas=(0.9, 0.98))
    begun, done, state = time.monotonic(), 0, folder / "state.pt"
    if state.is_file():
        kept = torch.load(state, weights_only=True)
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(kept["weights"][name])
        adam.load_state_dict(kept["adam"])
        done = int(kept["done"])
    plan = [stage for stage in STAGES for _ in range(stage[0])]
    while done < STEPS and (seconds is None or time.monotonic() - begun < seconds):
        _, rows, length, longest, answer, between, share = plan[done]
        rng = np.random.default_rng([seed, done])
        made = [
            document(rng, length, share=share, longest=longest, answer=answer, between=between)
            for _ in range(rows)
        ]
        tokens = torch.from_numpy(np.stack([one.tokens for one in made]))
        answers = torch.from_numpy(np.stack([one.answers for one in made]))
        loss, right = answer_loss(weights, tokens, answers)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in adam.param_groups:
            group["lr"] = rate_of(done)
        adam.step()
        done += 1
        if done % 10 == 0:
            say(
                f"step {done} of {STEPS}, {length} tokens: loss {float(loss.detach()):.3f}, {right:.0%} right"
            )
    if done < STEPS:
        partial = folder / "state.partial"
        torch.save({"weights": weights, "adam": adam.state_dict(), "done": done}, partial)
        partial.replace(state)
        return False
    arrays = {name: tensor.detach().numpy() for name, tensor in weights.items()}
    rows_of = [(name, "f32", each.shape, each.tobytes()) for name, each in arrays.items()]
    write_safetensors(folder / "model.safetensors", rows_of)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    state.unlink(missing_ok=True)
    return True
