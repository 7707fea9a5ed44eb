"""Structure methods: layers of another shape. `haversack.shrink.structure.factorize(model, rank=0.4)`.

The names below act on PyTorch modules and load PyTorch when first used; they need the extra `workshop`.
"""

from __future__ import annotations

import importlib
from typing import Any

from haversack.core.errors import MissingExtraError

_PUBLIC = {
    "factorize": "low_rank_torch",
    "merge": "low_rank_torch",
    "save": "low_rank_files_torch",
    "load": "low_rank_files_torch",
    "linformerize": "linformer_torch",
    "plan": "low_rank_plan_torch",
    "training_cost": "transformer_costs",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError(f"{name} of a PyTorch module", "torch", "workshop") from error
