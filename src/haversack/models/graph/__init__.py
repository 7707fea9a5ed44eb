"""Small networks as static graphs: int8 arithmetic to the bit, the way back, a plan of memory."""

from __future__ import annotations

from haversack.core._names import lazily

_PUBLIC = {
    "Graph": "_ir",
    "TrainingPlan": "training",
    "compiled": "training",
    "in_floats": "training",
    "split": "training",
    "with_head": "training",
    "Machine": "_execute",
    "Quantization": "_ir",
    "Tensor": "_ir",
    "backward": "autodiff",
    "load_mcu": "mcu",
    "pruned": "autodiff",
    "with_loss": "autodiff",
}

__all__ = list(_PUBLIC)

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
