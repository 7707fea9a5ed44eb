"""The random TinyLlama-shaped model as a pack of ours, with the same numbers as the peer's GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._cache import cached
from haversack.bench.peers import _equal_weights
from haversack.bench.peers._equal_weights import GROUP, Shape


def hub_config(shape: Shape) -> dict[str, Any]:
    """The config.json of a Llama of this shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.eps,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }


def random_pack(shape: Shape, copy: int = 0) -> Path:
    """The pack: int4 in groups of 32 with f16 scales, the output matrix int8, activations int8-dynamic.

    Made once and cached. `copy` numbers further copies of the same bytes, for processes whose page cache must
    not be shared.
    """

    def make(folder: Path) -> None:
        from haversack.core.pack import PackWriter
        from haversack.kernels import pack_int4, pack_int8

        with PackWriter(folder / "model.pack") as writer:
            for name, rows, columns in shape.matrices():
                values, scales = _equal_weights.int4_matrix(name, rows, columns)
                matrix = pack_int4(values, scales.astype(np.float32), GROUP)
                writer.add_tensor(name, "int4", (rows, columns), [matrix.data], GROUP, matrix.layout)
            for name in shape.norms():
                norm = _equal_weights.norm_weight(name, shape)
                writer.add_tensor(name, "f32", norm.shape, [norm.data])
            output = _equal_weights.output_matrix(shape)
            steps = np.abs(output).max(axis=1) / 127
            integers = np.rint(output / steps[:, None]).astype(np.int8)
            matrix = pack_int8(integers, steps.astype(np.float32))
            writer.add_tensor("lm_head.weight", "int8", output.shape, [matrix.data], None, matrix.layout)
            writer.finish(
                {
                    "architecture": hub_config(shape),
                    "plan": {"precision": "round-to-nearest:bits=4,group=32", "activations": "int8-dynamic"},
                    "activations": "int8-dynamic",
                    "provenance": {"model": "random weights", "shape": "TinyLlama-1.1B"},
                }
            )

    made_by = [Path(path).read_text(encoding="utf-8") for path in (__file__, _equal_weights.__file__)]
    inputs = {"written_by": made_by, "shape": repr(shape), "copy": copy}
    return cached("random-llama", inputs, make) / "model.pack"
