"""PyTorch with the reference library's own modules: eager, compiled, and on an accelerator where there is
one."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench.mlx_transformers_benchmark._backends import Batch, Checkpoint

F32 = npt.NDArray[np.float32]


def missing_libraries() -> str | None:
    """Why PyTorch models cannot run here."""
    absent = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed; run: pip install 'haversack[workshop]'"
    return None


class TorchModel:
    """The module on `device`; `compiled` through torch.compile."""

    def __init__(self, checkpoint: Checkpoint, threads: int, device: str, compiled: bool) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.device = device
        config = transformers.AutoConfig.for_model(**dict(checkpoint.config))
        # Empty on "meta", then the checkpoint's own tensors: no random initialisation, no second copy.
        with torch.device("meta"):
            module = transformers.AutoModel.from_config(config, dtype=torch.float32)
        one = checkpoint.architecture
        prefix = one.prefix if one.embedding.startswith(one.prefix) else ""
        own = {
            name.removeprefix(prefix): torch.from_numpy(array) for name, array in checkpoint.tensors.items()
        }
        module = module.to_empty(device="cpu")
        missing, _ = module.load_state_dict(own, strict=False, assign=False)
        buffers = {"embeddings.position_ids", "embeddings.token_type_ids"}
        absent = [name for name in missing if name not in buffers and not name.startswith("pooler.")]
        if absent:
            raise RuntimeError(f"the reference module wants tensors that the checkpoint lacks: {absent[:3]}")
        if "pooler.dense.weight" in missing:
            module.pooler = None
        self.module = module.eval().to(device)
        self.call: Any = torch.compile(self.module, dynamic=True) if compiled else self.module

    def run(self, batch: Batch) -> Any:
        """See Loaded. Positions are given, as they are to every backend."""
        import torch

        given = {
            "input_ids": batch.ids,
            "attention_mask": batch.mask,
            "token_type_ids": batch.types,
            "position_ids": batch.positions,
        }
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(values).to(self.device) for name, values in given.items()}
            return self.call(**tensors).last_hidden_state

    def finish(self, result: Any) -> None:
        """Wait for the device; on a processor the result is there."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        elif self.device == "mps":
            torch.mps.synchronize()

    def array(self, result: Any) -> F32:
        """See Loaded."""
        return np.asarray(result.float().cpu().numpy(), np.float32)


class TorchEager:
    """Each operation as it is called."""

    name = "torch-eager"
    exact = True
    device = "cpu"
    compiled = False

    def unavailable(self) -> str | None:
        """See Backend."""
        return missing_libraries()

    def load(self, checkpoint: Checkpoint, threads: int) -> TorchModel:
        """See Backend."""
        return TorchModel(checkpoint, threads, self.device, self.compiled)


class TorchCompiled(TorchEager):
    """Through torch.compile, which writes C++ and needs a compiler."""

    name = "torch-compiled"
    compiled = True

    def unavailable(self) -> str | None:
        """See Backend."""
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            return "torch.compile needs a C++ compiler, and neither g++ nor clang++ is there"
        return super().unavailable()


class TorchCuda(TorchEager):
    """On an NVIDIA GPU."""

    name = "torch-cuda"
    device = "cuda"

    def unavailable(self) -> str | None:
        """See Backend."""
        reason = super().unavailable()
        if reason is None:
            import torch

            reason = None if torch.cuda.is_available() else "no CUDA device is there"
        return reason


class TorchMps(TorchEager):
    """On an Apple GPU."""

    name = "torch-mps"
    device = "mps"

    def unavailable(self) -> str | None:
        """See Backend."""
        reason = super().unavailable()
        if reason is None:
            import torch

            reason = None if torch.backends.mps.is_available() else "no Metal device is there"
        return reason
