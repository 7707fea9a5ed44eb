"""adapter_config.json: what PEFT writes beside a LoRA, held against what is merged here, and written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haversack.core.errors import UserError, not_allowed

CONFIG = "adapter_config.json"
RANK_MOST = 1024


def check_config(folder: Path, config: Mapping[str, Any], blocks: int) -> None:
    """Raises UserError, naming the field, for a config that asks for more than a LoRA of a base of `blocks`
    blocks."""

    def refuse(field: str, why: str, nearest: Any = None) -> UserError:
        given = config.get(field)
        return UserError(
            f"{folder / CONFIG}: {field}={json.dumps(given)[:80]} {why}.",
            field=field,
            given=given,
            nearest=nearest,
        )

    if config.get("peft_type") != "LORA":
        raise not_allowed("peft_type", config.get("peft_type"), ("LORA",))
    if config.get("modules_to_save"):
        raise refuse("modules_to_save", "trains whole modules (embedding, norms or output matrix), no LoRA")
    if config.get("trainable_token_indices"):
        raise refuse("trainable_token_indices", "changes the embedding, which versions of a base share")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        field = "lora_bias" if config.get("lora_bias") else "bias"
        raise refuse(field, "trains biases; only matrices are merged", "none")
    for field in ("use_dora", "fan_in_fan_out", "alora_invocation_tokens", "megatron_config"):
        if config.get(field):
            raise refuse(field, "is not supported", False)
    rank, alpha = config.get("r"), config.get("lora_alpha", 8)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= RANK_MOST:
        raise refuse("r", f"is no rank (allowed 1 to {RANK_MOST})", 8)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise refuse("lora_alpha", "is no finite number", 16)
    for field in ("rank_pattern", "alpha_pattern"):
        table = config.get(field) or {}
        if not isinstance(table, dict) or not all(
            isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            for value in table.values()
        ):
            raise refuse(field, "is no table of positive numbers")
    listed = config.get("layers_to_transform")
    if listed is not None:
        each = listed if isinstance(listed, list) else [listed]
        if not each or not all(isinstance(block, int) and not isinstance(block, bool) for block in each):
            raise refuse("layers_to_transform", "is neither a block's number nor a list of them")
        beyond = [block for block in each if not 0 <= block < blocks]
        if beyond:
            raise refuse(
                "layers_to_transform", f"names block {beyond[0]} of a model with {blocks}", blocks - 1
            )


def adapter_config(base: str, rank: int, alpha: float, modules: list[str], blocks: list[int]) -> str:
    """adapter_config.json of a LoRA on `modules` of `blocks`, as PEFT reads it."""
    said = {
        "alpha_pattern": {},
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": "layers",
        "layers_to_transform": blocks,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return json.dumps(said, indent=2) + "\n"
