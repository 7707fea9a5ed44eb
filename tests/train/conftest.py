"""A small real target with upper blocks, texts for it, and a quick way to learn from them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from haversack.train._texts import Texts, split
from haversack.train._training import Learning

BLOCKS = 4
QUICK = Learning(steps=12, rows=2, length=32, warm_up_steps=2, threads=1)


def conformance() -> ModuleType:
    """The checkpoint writer of the conformance suite."""
    path = Path(__file__).parents[1] / "conformance" / "conftest.py"
    spec = importlib.util.spec_from_file_location("conformance_conftest", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small() -> ModuleType:
    """SmallCnn, a network for tests, and `shades`, rows for it; skips without PyTorch."""
    pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")
    path = Path(__file__).with_name("small_cnn.py")
    spec = importlib.util.spec_from_file_location("small_cnn", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_base() -> Callable[[Path, int], Path]:
    """Writes a target of four blocks."""

    def make(folder: Path, seed: int = 3) -> Path:
        found: Path = conformance().write_checkpoint(folder, seed, BLOCKS)
        return found

    return make


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, make_base: Any) -> Path:
    """A target of four blocks in f32."""
    found: Path = make_base(tmp_path_factory.mktemp("train") / "t0")
    return found


@pytest.fixture(scope="session")
def texts() -> Texts:
    """Tokens with something to learn: each repeats what stood seven before it, mostly."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 250, 3000).astype(np.int32)
    for place in range(7, len(tokens)):
        if rng.random() < 0.7:
            tokens[place] = tokens[place - 7]
    return split([tokens])


@pytest.fixture(scope="session")
def quick() -> Learning:
    return QUICK


@pytest.fixture(scope="session")
def draft(base: Path, texts: Texts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The draft of `base`."""
    pytest.importorskip("torch")
    from haversack.train.draft import train_draft

    goal = tmp_path_factory.mktemp("train") / "draft"
    assert train_draft(base, texts, goal, learning=QUICK) is not None
    return goal


@pytest.fixture
def peft(tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter with the library's own writer, in PEFT's format: rank 4 on the given matrices."""
    safetensors = pytest.importorskip("safetensors.numpy")

    def write(matrices: dict[str, tuple[int, int]], rank: int = 4, **config: Any) -> Path:
        folder = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        rng = np.random.default_rng(5)
        tensors = {}
        for module, (outputs, inputs) in matrices.items():
            at = f"base_model.model.{module}"
            tensors[f"{at}.lora_A.weight"] = rng.standard_normal((rank, inputs)).astype(np.float32)
            tensors[f"{at}.lora_B.weight"] = rng.standard_normal((outputs, rank)).astype(np.float32) / 20
        safetensors.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        said = {
            "alpha_pattern": {},
            "auto_mapping": None,
            "base_model_name_or_path": "some/base",
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "layer_replication": None,
            "layers_pattern": "layers",
            "layers_to_transform": [2, 3],
            "loftq_config": {},
            "lora_alpha": 8,
            "lora_dropout": 0.05,
            "megatron_config": None,
            "megatron_core": "megatron.core",
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": rank,
            "rank_pattern": {},
            "revision": None,
            "target_modules": ["q_proj", "down_proj"],
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        }
        (folder / "adapter_config.json").write_text(json.dumps({**said, **config}))
        return folder

    return write


UPPER = {"model.layers.2.self_attn.q_proj": (64, 64), "model.layers.3.mlp.down_proj": (64, 96)}


@pytest.fixture
def upper() -> dict[str, tuple[int, int]]:
    """Matrices above the anchor, with their sizes."""
    return dict(UPPER)
