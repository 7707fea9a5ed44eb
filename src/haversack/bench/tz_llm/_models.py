"""A decoder of 280 MB at 8 bits with random weights (latency does not depend on them), in the clear and
sealed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._cache import cached

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LAYERS = int(CONFIG["num_hidden_layers"])
KEY = bytes(range(100, 132))


def packs() -> tuple[Path, Path, Path]:
    """(the pack in the clear, the sealed one, the file of the key)."""

    def make(folder: Path) -> None:
        from haversack.core.pack import Pack, PackWriter
        from haversack.formats.sealed import seal
        from haversack.kernels import pack_int8
        from haversack.models import read_architecture

        rng = np.random.default_rng(29)
        with PackWriter(folder / "plain.pack") as writer:
            for name, shape in read_architecture(CONFIG).tensors().items():
                if len(shape) == 1:
                    values = 1 + rng.standard_normal(shape, np.float32) * np.float32(0.1)
                    writer.add_tensor(name, "f32", shape, [values.tobytes()])
                    continue
                codes = rng.integers(-127, 128, shape, np.int8)
                steps = np.full(shape[0], 1.7 / 127 / np.sqrt(shape[1]), np.float32)
                matrix = pack_int8(codes, steps)
                writer.add_tensor(name, "int8", shape, [matrix.data], None, matrix.layout)
            writer.finish(
                {"architecture": CONFIG, "plan": {"precision": "int8"}, "activations": "int8-dynamic"}
            )
        (folder / "key").write_bytes(KEY)
        seal(
            Pack.open(folder / "plain.pack"), folder / "sealed.pack", KEY, name=f"bench {os.urandom(8).hex()}"
        )

    inputs = {"config": CONFIG, "written_by": Path(__file__).read_text(encoding="utf-8")}
    folder = cached("tz-llm", inputs, make)
    return folder / "plain.pack", folder / "sealed.pack", folder / "key"
