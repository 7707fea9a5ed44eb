"""Small models drawn from a seed: checkpoint folders, packs and drafts, with a byte-level tokenizer."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.memory_source import MemorySource

from haversack.core.pack import PackWriter
from haversack.formats.safetensors import write_safetensors
from haversack.kernels import Matrix, pack_int3, pack_int4, pack_int8
from haversack.models import read_architecture
from haversack.models._tokenizer import byte_of_character

VOCABULARY = 288
END = 0
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": END,
    "eos_token_id": END,
}


def tokenizer_json(special: str = "<|end|>") -> str:
    """A byte-level vocabulary: one special token, the 256 bytes, some merges of two and three letters."""
    characters = {byte: character for character, byte in byte_of_character().items()}
    vocabulary = {special: END, **{characters[byte]: byte + 1 for byte in range(256)}}
    merges = []
    for pair in ("t h", "th e", "i n", "e r", "Ġ a", "r e", "o n", "a t", "d e", "s e", "n d", "o u"):
        left, right = pair.split()
        vocabulary[left + right] = len(vocabulary)
        merges.append(f"{left} {right}")
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": END,
                    "content": special,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            ],
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            },
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        }
    )


def load_record() -> ModuleType:
    path = Path(__file__).parents[1] / "models" / "record.py"
    spec = importlib.util.spec_from_file_location("record", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECORD = load_record()


def draw(config: dict[str, Any], seed: int = 1) -> dict[str, np.ndarray]:
    shapes = read_architecture(config).checkpoint_tensors()
    weights: dict[str, np.ndarray] = RECORD.draw_weights(shapes, seed)
    return weights


def write_folder(path: Path, config: dict[str, Any], seed: int = 1, kind: str = "f32") -> Path:
    """A hub folder with drawn weights."""
    path.mkdir(parents=True, exist_ok=True)
    number = {"f32": "<f4", "f16": "<f2"}[kind]
    tensors = [(n, kind, v.shape, v.astype(number).tobytes()) for n, v in draw(config, seed).items()]
    write_safetensors(path / "model.safetensors", tensors)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(tokenizer_json())
    return path


def shaken(folder: Path, to: Path, share: float = 0.1) -> Path:
    """The model of `folder` with its weights shaken a little: a draft that is often right."""
    config = json.loads((folder / "config.json").read_text())
    made, noise = draw(config, 1), draw(config, 9)
    to.mkdir(parents=True)
    tensors = [
        (name, "f32", one.shape, (one + share * noise[name]).astype("<f4").tobytes())
        for name, one in made.items()
    ]
    write_safetensors(to / "model.safetensors", tensors)
    for name in ("config.json", "tokenizer.json"):
        (to / name).write_text((folder / name).read_text())
    return to


def quantized(values: np.ndarray, kind: str, group: int = 32) -> Matrix:
    """Rounded to nearest."""
    if kind == "int8":
        scales = np.abs(values).max(axis=1) / 127
        codes = np.rint(values / scales[:, None]).clip(-127, 127).astype(np.int8)
        return pack_int8(codes, scales.astype(np.float32))
    rows, columns = values.shape
    grouped = values.reshape(rows, columns // group, group)
    top, pack = (3, pack_int3) if kind == "int3" else (7, pack_int4)
    scales = (np.abs(grouped).max(axis=2) / top).astype(np.float16).astype(np.float32)
    codes = np.rint(grouped / scales[:, :, None]).clip(-top - 1, top).astype(np.int8).reshape(rows, columns)
    return pack(codes, scales, group)


def write_pack(path: Path, config: dict[str, Any], activations: str = "int8-dynamic", seed: int = 1) -> Path:
    """A pack: int4 blocks, int8 ends."""
    architecture = read_architecture(config)
    blocks = {linear.weight for block in architecture.blocks for linear in block.matrices()}
    with PackWriter(path) as writer:
        for name, values in draw(config, seed).items():
            if values.ndim == 2:
                matrix = quantized(values, "int4" if name in blocks else "int8")
                writer.add_tensor(name, matrix.kind, matrix.shape, [matrix.data], matrix.group, matrix.layout)
            else:
                writer.add_tensor(name, "f32", values.shape, [values.tobytes()])
        writer.add_file("tokenizer.json", tokenizer_json().encode())
        plan = {"precision": "round-to-nearest:bits=4,group=32", "activations": activations}
        writer.finish({"architecture": config, "plan": plan, "activations": activations})
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "tiny", CONFIG)


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("models") / "tiny.pack", CONFIG)


@pytest.fixture(scope="session")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {**CONFIG, "num_hidden_layers": 1}
    return write_folder(tmp_path_factory.mktemp("models") / "draft", config)


@pytest.fixture(scope="session")
def alike(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft that is often right about `folder`."""
    return shaken(folder, tmp_path_factory.mktemp("alike") / "alike")


@pytest.fixture(scope="session")
def family() -> Any:
    """A model of any recorded case, in memory: family(name) -> source."""

    def make(name: str, **changes: Any) -> MemorySource:
        config = {**RECORD.CASES[name][0], **changes}
        return MemorySource(config, draw(config, RECORD.seed_of(name)))

    return make


@pytest.fixture(scope="session")
def make_folder() -> Any:
    return write_folder


@pytest.fixture(scope="session")
def make_pack() -> Any:
    return write_pack


@pytest.fixture(scope="session")
def tiny_config() -> dict[str, Any]:
    return dict(CONFIG)


@pytest.fixture(scope="session")
def record() -> ModuleType:
    """The parity cases of tests/models/record.py."""
    return RECORD


@pytest.fixture(scope="session")
def quantize() -> Any:
    """Rounds a matrix to int8, int4 or int3: `quantized`."""
    return quantized
