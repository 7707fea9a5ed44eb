"""The bench object that the files of this folder add their rows to, and what they share."""

from __future__ import annotations

from types import ModuleType

from haversack.bench._harness import Bench
from haversack.bench._rows import Unavailable

FILES = ("bench/greenformers/*.py", "shrink/structure/*.py", "run/forms/low_rank.py", "run/_program.py")

bench = Bench("greenformers", number=38, watches=FILES)


def workshop(threads: int | None = None) -> ModuleType:
    """PyTorch on `threads` threads, as many as there are cores if none are named.

    Raises Unavailable where it is not installed.
    """
    import importlib.util
    import os
    import warnings

    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise Unavailable(f"{name} is not installed; run: pip install 'haversack[workshop]'")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message=".*stays:.*")  # layers that stay are no news here
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    return torch
