"""What a model's own implementation answers: `transformers`, or, for a family that is not in it, the numpy of
smallthinker_reference.py.

Checkpoints of mixtures of experts are written as the hub has them, one expert's matrices after the other, and
read by `transformers` from there, which joins them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def reference(
    config: dict[str, Any], weights: dict[str, np.ndarray], prompt: np.ndarray, decoded: int
) -> Any:
    """Logits f32 [prompt + decoded - 1, vocabulary] and the decoded tokens."""
    import torch

    torch.manual_seed(0)
    model = from_folder(config, weights) if is_mixture(weights) else from_tensors(config, weights)
    model.eval()
    rows, tokens = [], []
    if model.config.model_type == "phi3" and "short_factor" in model.config.rope_parameters:
        return _generated(model, prompt, decoded)
    with torch.no_grad():
        said = model(input_ids=torch.from_numpy(prompt.astype(np.int64))[None], use_cache=True)
        rows.append(said.logits[0].numpy())
        for _ in range(decoded):
            tokens.append(int(rows[-1][-1].argmax()))
            if len(tokens) < decoded:
                following = torch.tensor([[tokens[-1]]])
                said = model(input_ids=following, past_key_values=said.past_key_values, use_cache=True)
                rows.append(said.logits[0].numpy())
    return np.concatenate(rows).astype(np.float32), tokens


def is_mixture(weights: dict[str, np.ndarray]) -> bool:
    """True when some tensor is an expert's."""
    return any(".experts." in name for name in weights)


def from_tensors(config: dict[str, Any], weights: dict[str, np.ndarray]) -> Any:
    """A model of transformers with `weights` under its own names, every one of which must be there."""
    import torch
    import transformers

    kind = transformers.AutoConfig.for_model(**json.loads(json.dumps(config)))
    model = transformers.AutoModelForCausalLM.from_config(
        kind, attn_implementation="eager", dtype=torch.float32
    )
    own = {name: torch.from_numpy(values.copy()) for name, values in weights.items()}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    assert len(own) + len(missing) == len(model.state_dict()), "a tensor was not drawn"
    model.tie_weights()
    return model


def from_folder(config: dict[str, Any], weights: dict[str, np.ndarray]) -> Any:
    """A model of transformers read from a checkpoint folder that holds `config` and `weights`."""
    import torch
    import transformers
    from safetensors.numpy import save_file

    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        save_file(weights, Path(folder, "model.safetensors"), {"format": "pt"})
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not found[what], (what, found[what])
    return model


def _generated(model: Any, prompt: np.ndarray, decoded: int) -> Any:
    """The same by the model's own loop, which reads the text again when it outgrows the short factors."""
    import torch

    model.generation_config.eos_token_id = None
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    with torch.no_grad():
        read = model(input_ids=ids).logits[0].numpy()
        said = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=decoded,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    following = [row[0].numpy() for row in said.logits[1:]]
    tokens = said.sequences[0, len(prompt) :].tolist()
    return np.concatenate([read, following]).astype(np.float32), tokens
