"""The models that the engine's rows are measured on, kept by content: `code` packed in several ways, a random
checkpoint of middle size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._cache import cached
from haversack.bench._store import content_hash
from haversack.bench.engine._bench import SHRINK_FILES

CALIBRATION_TOKENS = 64 * 1024
PIECE = 512
MEDIUM = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}


def code_folder(name: str = "code") -> Path:
    """The folder of a bundled model. Raises UserError when it is absent."""
    from haversack.models._bundled import model_folder

    return Path(model_folder(name))


def code_pack(precision: str, *, seed: int = 0, embedding: str = "f16", output: str = "int8") -> Path:
    """`code` packed by the precision method `precision`, calibrated on 64 k tokens drawn by `seed`."""
    folder = code_folder()
    inputs = {
        "precision": precision,
        "seed": seed,
        "policy": [embedding, output],
        "program": content_hash(SHRINK_FILES),
        "model": [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())],
    }

    def make(goal: Path) -> None:
        _pack(folder, goal / "code.pack", precision, seed, embedding, output)

    return cached("code", inputs, make) / "code.pack"


def _pack(folder: Path, goal: Path, precision: str, seed: int, embedding: str, output: str) -> None:
    from haversack.core.pack import PackWriter
    from haversack.formats.safetensors import HubFolder
    from haversack.models import Tokenizer, read_architecture
    from haversack.models._calibration import segments, token_text
    from haversack.plan._enumerate import create_precision
    from haversack.plan._job import add_files
    from haversack.shrink._language import LanguageWalk
    from haversack.shrink._pipeline import Policy, compress
    from haversack.shrink._precision import calibrated

    source = HubFolder.open(folder)
    architecture = read_architecture(source.config)
    method = create_precision(precision)
    texts = None
    if calibrated(method):
        encode = Tokenizer.of_folder(source.path).encode
        text = token_text(encode, architecture.vocabulary, "calibration", None, CALIBRATION_TOKENS)
        texts = segments(text.tokens, PIECE, CALIBRATION_TOKENS // PIECE, seed)
    with PackWriter(goal) as writer:
        policy = Policy(output=output, embedding=embedding)
        compress(
            source, LanguageWalk(architecture), method, writer, texts=texts, policy=policy, folder=goal.parent
        )
        add_files(writer, folder)
        writer.finish({"architecture": source.config, "plan": {"precision": precision}})


def unpacked(pack: Path) -> Path:
    """A pack that holds, in f32, the numbers that `pack` stands for: what dequantized computation runs on."""

    def make(goal: Path) -> None:
        from haversack.core.pack import Pack, PackWriter
        from haversack.kernels import Matrix, unpack

        source = Pack.open(pack)
        with PackWriter(goal / "plain.pack") as writer:
            for name, entry in source.tensors.items():
                chunks: list[Any] = [source.bytes(name)]
                if entry.kind != "f32":
                    rows, columns = entry.shape
                    matrix = Matrix.from_bytes(
                        entry.kind, (rows, columns), entry.group, entry.layout, source.bytes(name)
                    )
                    chunks = [np.ascontiguousarray(unpack(matrix), np.float32).data]
                writer.add_tensor(name, "f32", entry.shape, chunks)
            for file in pack.iterdir():
                if file.name.startswith("tokenizer"):
                    writer.add_file(file.name, file)
            writer.finish(
                {"architecture": source.record.architecture, "plan": {"precision": "keep:kind=f32"}}
            )

    return cached("unpacked", {"of": str(pack)}, make) / "plain.pack"


def medium_checkpoint() -> tuple[Path, Mapping[str, int]]:
    """A random Llama of 28 M weights with `code`'s tokenizer as a hub folder, and the bytes in f32 of its
    largest block and of that block's widest Hessian."""
    folder = code_folder()
    config = MEDIUM | {"vocab_size": json.loads((folder / "config.json").read_text())["vocab_size"]}
    width, inner = MEDIUM["hidden_size"], MEDIUM["intermediate_size"]
    assert isinstance(width, int) and isinstance(inner, int)

    def make(goal: Path) -> None:
        from haversack.formats.safetensors import HubFolder, write_safetensors
        from haversack.models import read_architecture

        rng = np.random.default_rng(5)
        architecture = read_architecture(config)
        tensors = {architecture.embedding: (architecture.vocabulary, width), "model.norm.weight": (width,)}
        for block in architecture.blocks:
            tensors.update(block.tensors())  # type: ignore[arg-type]
        arrays = {
            name: 1 + rng.standard_normal(shape, np.float32) * np.float32(0.1)
            if len(shape) == 1
            else rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[1]))
            for name, shape in tensors.items()
        }
        (goal / "config.json").write_text(json.dumps(config), encoding="utf-8")
        write_safetensors(
            goal / "model.safetensors",
            [(name, "f32", array.shape, array.data) for name, array in arrays.items()],
        )
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                (goal / name).write_bytes((folder / name).read_bytes())
        HubFolder.open(goal)

    path = cached("medium", {"config": config, "written_by": Path(__file__).read_text()}, make)
    kv = width * 4 // 16
    block = 4 * (2 * width * width + 2 * kv * width + 3 * inner * width)
    return path, {"block": block, "hessian": 4 * inner * inner}
