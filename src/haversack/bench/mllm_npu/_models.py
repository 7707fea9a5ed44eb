"""The bench's model: `code`, given exact outliers in two of its norms, and its packs.

Small models lack the outliers of large ones, so they are added where the paper finds the important ones, near
both ends: 3 of the 384 channels that the first block's norm before attention gives, and the last block's
before its feed-forward layer, are multiplied by 50 to 100 and the columns that read them divided. The
function stays; the matrices of the four feed-forward layers' ends have outliers of their own. Packs are
calibrated on 32 pieces of 512 tokens of the training text; 1 % of the magnitudes may pass a grid, since one
channel in 384 is more than the paper's 0.1 %.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._store import content_hash
from haversack.bench.mllm_npu._bench import FILES

PIECES, LENGTH = 32, 512
SITES = ((0, 0), (-1, 1))
"""(block, which of its norms)."""
CHANNELS, SMALLEST, LARGEST = 3, 50.0, 100.0
PACKS = {
    "absmax": "mllm-npu:sides=clip",
    "clip": "mllm-npu:beyond=0.01,keep=0.0,alone=percentile",
    "all": "mllm-npu:beyond=0.01,keep=1.0",
    "pruned": "mllm-npu:beyond=0.01",
    "pruned as published": "mllm-npu:beyond=0.01,alone=percentile",
}


def _write_model(goal: Path) -> None:
    from haversack.bench.engine._models import code_folder
    from haversack.formats.safetensors import HubFolder, write_safetensors
    from haversack.models.language import read_architecture
    from haversack.shrink._source import read_tensor
    from haversack.shrink._transforms import fold, pairs_of

    source = HubFolder.open(code_folder())
    architecture = read_architecture(source.config)
    tensors = {name: read_tensor(source, name).copy() for name in architecture.tensors()}
    rng = np.random.default_rng(0)
    for block, which in SITES:
        norms = [pair for pair in pairs_of(architecture.blocks[block]) if pair.kind == "norm"]
        scale = np.ones(architecture.width)
        chosen = rng.choice(architecture.width, CHANNELS, replace=False)
        scale[chosen] = 1 / rng.uniform(SMALLEST, LARGEST, CHANNELS)
        fold(tensors, norms[which], scale)
    folder = goal / "code"
    folder.mkdir()
    written = [(name, "f32", each.shape, each.astype("<f4").tobytes()) for name, each in tensors.items()]
    write_safetensors(folder / "model.safetensors", written)
    for path in code_folder().iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, folder / path.name)


def model_folder() -> Path:
    """`code` with outliers, in f32."""
    from haversack.bench.engine._models import code_folder

    sizes = [(path.name, path.stat().st_size) for path in sorted(code_folder().iterdir())]
    inputs = {"model": sizes, "sites": SITES, "outliers": [CHANNELS, SMALLEST, LARGEST], "version": 1}
    return cached("mllm-npu-model", inputs, _write_model) / "code"


def pack_of(name: str) -> Path:
    """The pack of PACKS, kept by content."""
    inputs = {
        "precision": PACKS[name],
        "pieces": [PIECES, LENGTH],
        "program": content_hash(FILES),
        "model": str(model_folder()),
    }
    return cached("mllm-npu", inputs, lambda goal: _pack(goal, PACKS[name])) / "code.pack"


def _pack(goal: Path, precision: str) -> None:
    from haversack.core import index
    from haversack.core.pack import PackWriter
    from haversack.formats.safetensors import HubFolder
    from haversack.models import Tokenizer, read_architecture
    from haversack.models._calibration import segments, token_text
    from haversack.plan._job import add_files
    from haversack.shrink._language import LanguageWalk
    from haversack.shrink._pipeline import Policy, compress

    source = HubFolder.open(model_folder())
    architecture = read_architecture(source.config)
    encode = Tokenizer.of_folder(source.path).encode
    text = token_text(encode, architecture.vocabulary, "calibration", None, PIECES * LENGTH)
    texts = segments(text.tokens, LENGTH, PIECES, 0)
    method: Any = index.create("shrink", "precision", precision)
    with PackWriter(goal / "code.pack") as writer:
        walk, policy = LanguageWalk(architecture), Policy()
        compress(source, walk, method, writer, texts=texts, policy=policy, folder=goal)
        add_files(writer, model_folder())
        plan = {"precision": precision, "activations": "int8-static"}
        writer.finish({"architecture": source.config, "plan": plan, "activations": "int8-static"})


@functools.cache
def profiles() -> dict[str, Any]:
    """Matrix -> what the calibration text shows of it, with the grids of the pack "all"."""
    from haversack.core import index
    from haversack.formats.safetensors import HubFolder
    from haversack.models import Tokenizer, read_architecture
    from haversack.models._calibration import segments, token_text
    from haversack.shrink._language import LanguageWalk
    from haversack.shrink.precision._mllm_npu_profile import profile

    source = HubFolder.open(model_folder())
    architecture = read_architecture(source.config)
    encode = Tokenizer.of_folder(source.path).encode
    text = token_text(encode, architecture.vocabulary, "calibration", None, 8 * LENGTH)
    method: Any = index.create("shrink", "precision", PACKS["all"])
    return profile(source, LanguageWalk(architecture), segments(text.tokens, LENGTH, 8, 0), method)


def held_out(run: Run, tokens: int, quick: int) -> Any:
    """Held-out text of packages that neither training nor calibration saw."""
    from haversack.bench.engine.quality import evaluation_text

    return evaluation_text(run).part(quick if run.quick else tokens)
