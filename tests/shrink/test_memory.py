"""Compression never holds more than its plan says, which is what the bar allows: measured from outside."""

import json
import sys

import numpy as np
import pytest

from haversack.core.memory import run_measured
from haversack.formats.safetensors import write_safetensors
from haversack.models import read_architecture
from haversack.plan._enumerate import create_precision
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import memory_plan

CONFIG = {
    "model_type": "llama",
    "vocab_size": 3000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
PIECES, LENGTH = 24, 256

CHILD = """
import sys
from pathlib import Path
import numpy as np
from haversack.core.pack import PackWriter
from haversack.formats.safetensors import HubFolder
from haversack.models import read_architecture
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress
from haversack.core import index

folder, pieces, length = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
method = index.create("shrink", "precision", sys.argv[4])
source = HubFolder.open(folder)
walk = LanguageWalk(read_architecture(source.config))
texts = np.random.default_rng(1).integers(0, 3000, (pieces, length)).astype(np.int32)
with PackWriter(folder.parent / "a.pack") as writer:
    compress(source, walk, method, writer, texts=texts, policy=Policy(), folder=folder.parent)
    writer.finish({})
"""


@pytest.mark.parametrize("choice", ["gptq", "awq:tokens=512", "smoothquant:pairs=all", "mllm-npu"])
def test_the_peak_stays_below_the_plan(tmp_path, choice):
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(0)
    architecture = read_architecture(CONFIG)
    tensors = [
        (name, "f16", shape, (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float16).tobytes())
        for name, shape in architecture.tensors().items()
    ]
    write_safetensors(folder / "model.safetensors", tensors)
    del tensors
    done = run_measured(
        [sys.executable, "-c", CHILD, str(folder), str(PIECES), str(LENGTH), choice],
        files=[folder / "model.safetensors"],
        env={"OPENBLAS_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    method = create_precision(choice)
    plan = memory_plan(LanguageWalk(architecture), method, PIECES * LENGTH, None)
    # The bar: twice the largest block in f32, twice its widest Hessian, the text's hidden states, 200 MiB.
    block = sum(4 * int(np.prod(shape)) for shape in architecture.blocks[0].tensors().values())
    bar = 2 * block + 2 * 4 * 1408**2 + 4 * PIECES * LENGTH * 512 + (200 << 20)
    assert plan.total_bytes <= bar + (1 << 20) or choice != "gptq"
    assert done.peak_mib <= plan.total_mib
    assert done.peak_mib >= 60
