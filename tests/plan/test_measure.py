"""Quality block by block: the number of the window-by-window definition, in the memory of two blocks."""

import json
import sys

import numpy as np
import pytest

from haversack.core.memory import drop_cached, run_measured
from haversack.formats.safetensors import write_safetensors
from haversack.models import read_architecture
from haversack.models._calibration import TokenText
from haversack.models._evaluation import bits_per_byte
from haversack.plan._candidates import Plan
from haversack.plan._measure import open_engine, quality

SMALL = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
WIDE = SMALL | {
    "vocab_size": 2000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
}


def checkpoint(folder, config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    tensors = [
        (name, "f16", shape, (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float16).tobytes())
        for name, shape in read_architecture(config).tensors().items()
    ]
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def text_of(count, vocabulary):
    tokens = np.random.default_rng(1).integers(0, vocabulary, count).astype(np.int32)
    return TokenText("drawn", tokens, 2 * count)


@pytest.mark.parametrize("count", [40, 2000])
@pytest.mark.parametrize("cache_type", ["f32", "int8"])
def test_all_windows_at_once_cost_what_each_costs_alone(tmp_path, count, cache_type):
    folder, text = checkpoint(tmp_path / "small", SMALL), text_of(count, 300)
    plan = Plan("keep:kind=f16", residency="mapped", cache_type=cache_type)
    with open_engine(folder, plan, "mapped") as engine:
        expected = bits_per_byte(engine, text.tokens, text.byte_count, 600, 450)
    assert quality(folder, plan, text, 600, tmp_path) == pytest.approx(expected, rel=1e-7)


CHILD = """
import sys
from pathlib import Path
import numpy as np
from haversack.models._calibration import TokenText
from haversack.plan._measure import quality

tokens = np.random.default_rng(1).integers(0, 2000, 1000).astype(np.int32)
print(quality(Path(sys.argv[1]), None, TokenText("drawn", tokens, 2000), 400, Path(sys.argv[1]).parent))
"""


def test_a_model_of_many_blocks_is_judged_in_the_memory_of_two(tmp_path):
    folder = checkpoint(tmp_path / "wide", WIDE)
    weights = folder / "model.safetensors"
    drop_cached([weights])
    done = run_measured([sys.executable, "-c", CHILD, str(folder)], files=[weights], timeout=240)
    assert done.returncode == 0, done.stderr
    block = weights.stat().st_size / 16 / 2**20
    assert weights.stat().st_size > 85 * 2**20
    assert done.peak_mib < 55 + 4 * block, done.peak_mib
